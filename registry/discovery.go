package registry

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// MeshConfig.discoverySelectors limit the mesh to namespaces with labels that any
// of the selectors takes, in every cluster by the labels that the namespace has
// there. What is in other namespaces is kept apart in its shard, so that a label
// or a selector that changes brings it in or takes it out at once. A namespace
// that nobody knows is in none of them.

// discovery selects namespaces; nil selects all.
type discovery []*meshconfig.LabelSelector

// shows reports whether a namespace is in the mesh, by its object.
func (d discovery) shows(o *mesh.Object) bool {
	return len(d) == 0 || o != nil && slices.ContainsFunc(d, func(s *meshconfig.LabelSelector) bool { return mesh.SelectsLabels(s, o.Labels) })
}

func sameSelectors(a, b []*meshconfig.LabelSelector) bool {
	return slices.EqualFunc(a, b, func(x, y *meshconfig.LabelSelector) bool { return proto.Equal(x, y) })
}

// withheld is what of a cluster is in namespaces that are not in the mesh.
type withheld struct {
	services  map[mesh.ServiceKey]ServiceState
	workloads map[string]podState
	objects   map[mesh.ObjectKey]*mesh.Object
}

func newWithheld() withheld {
	return withheld{services: map[mesh.ServiceKey]ServiceState{}, workloads: map[string]podState{}, objects: map[mesh.ObjectKey]*mesh.Object{}}
}

// shows reports whether a namespace of the cluster is in the mesh; "" is for what
// is in no namespace.
func (sh *shard) shows(d discovery, namespace string) bool {
	return namespace == "" || d.shows(sh.objects[namespaceKey(namespace)])
}

func namespaceKey(name string) mesh.ObjectKey {
	return mesh.ObjectKey{Kind: mesh.KindNamespace, Name: name}
}

// namespaceOf is the namespace of a workload, by its key.
func namespaceOf(workload string) string {
	ns, _, _ := strings.Cut(workload, "/")
	return ns
}

// withhold takes out of an update what is in namespaces that are not in the mesh,
// and remembers it.
func (sh *shard) withhold(d discovery, u Update) Update {
	u.Services = slices.DeleteFunc(slices.Clone(u.Services), func(st ServiceState) bool {
		if sh.shows(d, st.Key.Namespace) {
			return false
		}
		setOrDelete(sh.held.services, st.Key, st, st.Definition != nil)
		return true
	})
	u.Workloads = slices.DeleteFunc(slices.Clone(u.Workloads), func(w WorkloadState) bool {
		if sh.shows(d, namespaceOf(w.Key)) {
			return false
		}
		setOrDelete(sh.held.workloads, w.Key, podState{w.Workload, w.Health}, w.Workload != nil)
		return true
	})
	u.Objects = slices.DeleteFunc(slices.Clone(u.Objects), func(o ObjectState) bool {
		if sh.shows(d, o.Key.Namespace) {
			return false
		}
		setOrDelete(sh.held.objects, o.Key, o.Object, o.Object != nil)
		return true
	})
	return u
}

// resort makes the update by which what is in the mesh and what is withheld
// changes places where namespaces came into it or left it.
func (sh *shard) resort(d discovery) Update {
	var u Update
	for k, st := range sh.held.services {
		if sh.shows(d, k.Namespace) {
			u.Services = append(u.Services, st)
			delete(sh.held.services, k)
		}
	}
	for k, p := range sh.held.workloads {
		if sh.shows(d, namespaceOf(k)) {
			u.Workloads = append(u.Workloads, WorkloadState{k, p.workload, p.health})
			delete(sh.held.workloads, k)
		}
	}
	for k, o := range sh.held.objects {
		if sh.shows(d, k.Namespace) {
			u.Objects = append(u.Objects, ObjectState{k, o})
			delete(sh.held.objects, k)
		}
	}
	for k, st := range sh.services {
		if !sh.shows(d, k.Namespace) {
			sh.held.services[k] = st
			u.Services = append(u.Services, ServiceState{Key: k})
		}
	}
	for k, p := range sh.workloads {
		if !sh.shows(d, namespaceOf(k)) {
			sh.held.workloads[k] = p
			u.Workloads = append(u.Workloads, WorkloadState{Key: k})
		}
	}
	for k, o := range sh.objects {
		if !sh.shows(d, k.Namespace) {
			sh.held.objects[k] = o
			u.Objects = append(u.Objects, ObjectState{Key: k})
		}
	}
	return u
}

func setOrDelete[K comparable, V any](m map[K]V, k K, v V, set bool) {
	if set {
		m[k] = v
	} else {
		delete(m, k)
	}
}

// discover applies an update to a shard, as far as it is about namespaces that
// are in the mesh. Namespaces go first: they decide about the rest.
func (b *batch) discover(id mesh.ClusterID, sh *shard, u Update) {
	d := b.store.discovery
	if len(d) == 0 {
		b.update(id, sh, u)
		return
	}
	var namespaces Update
	moved := false
	for _, o := range u.Objects {
		if o.Key.Kind == mesh.KindNamespace {
			namespaces.Objects = append(namespaces.Objects, o)
			moved = moved || d.shows(sh.objects[o.Key]) != d.shows(o.Object)
		}
	}
	b.update(id, sh, namespaces)
	if moved {
		b.update(id, sh, sh.resort(d))
	}
	b.update(id, sh, sh.withhold(d, u))
}

// rediscover moves everything to where new selectors want it.
func (b *batch) rediscover() {
	for _, id := range slices.Sorted(maps.Keys(b.store.shards)) {
		sh := b.store.shards[id]
		b.update(id, sh, sh.resort(b.store.discovery))
	}
}
