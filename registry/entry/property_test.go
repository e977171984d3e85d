package entry

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// world is the newest state of everything that an index is told.
type world struct {
	domain   string
	policy   *meshconfig.ServiceEntryVisibility
	labels   map[string]string // of the namespace
	entries  map[mesh.ObjectKey]*mesh.Object
	machines map[machineKey]*mesh.Object
	pods     map[memberRef]Pod
}

func (w *world) all() iter.Seq[Pod] { return maps.Values(w.pods) }

// rebuilt is an index that was told nothing but the newest state.
func (w *world) rebuilt() *Index {
	x := NewIndex(w.domain)
	x.SetNamespace("shop", w.labels)
	x.SetVisibility(w.policy)
	for k, o := range w.machines {
		x.SetMachine(k.cluster, k.key, o)
	}
	for k, o := range w.entries {
		x.SetEntry(k, o)
	}
	x.Flush(w.all)
	return x
}

func genLabels(t *rapid.T) map[string]string {
	return rapid.SampledFrom([]map[string]string{nil, {"app": "a"}, {"app": "b"}, {"app": "a", "v": "1"}}).Draw(t, "labels")
}

func genEntry(t *rapid.T) *mesh.Object {
	spec := &networking.ServiceEntry{
		Hosts:      rapid.SliceOfN(rapid.SampledFrom([]string{"a.example", "b.example", "*.example"}), 1, 2).Draw(t, "hosts"),
		Addresses:  rapid.SampledFrom([][]string{nil, nil, {"240.0.0.1"}, {"10.0.0.0/8"}, {"240.240.168.195"}}).Draw(t, "addresses"),
		Ports:      ports(rapid.SampledFrom([][]string{{"http:80"}, {"http:80", "tcp:90"}, {"tcp:80"}}).Draw(t, "ports")...),
		Resolution: networking.ServiceEntry_Resolution(rapid.IntRange(0, 4).Draw(t, "resolution")),
		Location:   networking.ServiceEntry_Location(rapid.IntRange(0, 1).Draw(t, "location")),
	}
	if rapid.Bool().Draw(t, "selects") {
		spec.WorkloadSelector = &networking.WorkloadSelector{Labels: genLabels(t)}
	} else {
		spec.Endpoints = rapid.SliceOfN(rapid.Custom(genMachine), 0, 2).Draw(t, "endpoints")
	}
	o := serviceEntry(rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "name"), rapid.Int64Range(0, 2).Draw(t, "age"), spec)
	if rapid.IntRange(0, 3).Draw(t, "status") == 0 {
		o.Status = &mesh.ObjectStatus{Addresses: []mesh.HostAddress{{Host: "a.example", Address: slotAddrs(rapid.IntRange(0, 2).Draw(t, "slot"))[0]}}}
	}
	return o
}

func genMachine(t *rapid.T) *networking.WorkloadEntry {
	return &networking.WorkloadEntry{Address: rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.2", "name.example", "unix:///a", ""}).Draw(t, "address"),
		Labels: genLabels(t), Network: rapid.SampledFrom([]string{"", "n1"}).Draw(t, "network"),
		ServiceAccount: rapid.SampledFrom([]string{"", "web"}).Draw(t, "account"), Weight: rapid.Uint32Range(0, 2).Draw(t, "weight")}
}

// step does one thing to the index and to the world.
func (w *world) step(t *rapid.T, x *Index) {
	id := mesh.ClusterID(rapid.SampledFrom([]string{"east", "west"}).Draw(t, "cluster"))
	gone := rapid.IntRange(0, 3).Draw(t, "gone") == 0
	switch rapid.SampledFrom([]string{"entry", "machine", "pod", "domain", "visibility", "namespace"}).Draw(t, "step") {
	case "entry":
		o := genEntry(t)
		if w.entries[o.Key] = o; gone {
			delete(w.entries, o.Key)
		}
		x.SetEntry(o.Key, w.entries[o.Key])
	case "machine":
		o := workloadEntry(id, rapid.SampledFrom([]string{"m", "n"}).Draw(t, "name"), genMachine(t))
		k := machineKey{id, o.Key}
		if w.machines[k] = o; gone {
			delete(w.machines, k)
		}
		x.SetMachine(id, o.Key, w.machines[k])
	case "pod":
		name := rapid.SampledFrom([]string{"p", "q"}).Draw(t, "name")
		now := pod(id, name, "10.0.0.1", genLabels(t))
		now.Health = mesh.Health(rapid.IntRange(0, 3).Draw(t, "health"))
		r := memberRef{id, "Pod", now.Key}
		var before, after *Pod
		if old, had := w.pods[r]; had {
			before = &old
		}
		if delete(w.pods, r); !gone {
			w.pods[r], after = now, &now
		}
		x.SetPod(before, after)
	case "domain":
		w.domain = rapid.SampledFrom([]string{domain, "other.example"}).Draw(t, "domain")
		x.SetTrustDomain(w.domain)
	case "visibility":
		w.policy = rapid.SampledFrom([]*meshconfig.ServiceEntryVisibility{nil, visibility(hidden), visibility(private),
			visibility(private, forNamespaces(public, "trusted")), visibility(public, forNamespaces(hidden, "trusted"))}).Draw(t, "policy")
		x.SetVisibility(w.policy)
	case "namespace":
		w.labels = rapid.SampledFrom([]map[string]string{nil, {}, {"trusted": "true"}}).Draw(t, "namespace labels")
		x.SetNamespace("shop", w.labels)
	}
}

func picture(x *Index) map[mesh.ServiceKey]string {
	out := map[mesh.ServiceKey]string{}
	for k, d := range x.All() {
		s := fmt.Sprintf("%+v\n%v\n", *d.Definition, d.Conflicts)
		for _, e := range d.Endpoints {
			w := *e.Workload
			e.Workload = nil
			s += fmt.Sprintf("%+v %+v\n", e, w)
		}
		out[k] = s
	}
	return out
}

// After any steps the index says what one says that was told the newest state
// alone, and those of its hosts that it says have changed are those that have.
func TestIndexIsAFunctionOfTheNewestState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{domain: domain, entries: map[mesh.ObjectKey]*mesh.Object{}, machines: map[machineKey]*mesh.Object{}, pods: map[memberRef]Pod{}}
		x := NewIndex(domain)
		before := picture(x)
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			for range rapid.IntRange(1, 3).Draw(t, "batch") {
				w.step(t, x)
			}
			changed := x.Flush(w.all)
			now := picture(x)
			require.Equal(t, picture(w.rebuilt()), now)
			for _, k := range slices.Concat(slices.Collect(maps.Keys(before)), slices.Collect(maps.Keys(now))) {
				require.Equal(t, before[k] != now[k], slices.Contains(changed, k), "%s", k)
			}
			before = now
			for _, d := range x.derived {
				require.True(t, slices.IsSortedFunc(d.Endpoints, mesh.Endpoint.Compare))
			}
		}
	})
}
