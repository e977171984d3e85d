package build

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unique"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config/envoypatch"
)

// EnvoyFilters change resources after they are made. Which patches are about a
// proxy is worked out once, with its view; a resource's projected view holds
// those that may be about the resource, so that proxies without EnvoyFilters,
// and resources that no patch is about, are shared as if there were none.
//
// A patch is applied whole or not at all: to a copy of the part that it changes,
// which takes the part's place if proxies would accept it. One that cannot be
// applied is left out and reported; the others, and the resource, go on.

// PatchSet is a comparable handle of a list of patches, in the order in which
// they apply.
type PatchSet struct{ h unique.Handle[string] }

// patchRef names one patch: the index in its object's configPatches.
type patchRef struct {
	object ObjectName
	index  int
	// unserves says that the patch removes the inbound upstreams of a service, so
	// that it takes the service to know which ports are left.
	unserves bool
}

// unservesMark ends the text of a patch that unserves.
const unservesMark = "!"

// makePatchSet interns a list.
func makePatchSet(refs []patchRef) PatchSet {
	if len(refs) == 0 {
		return PatchSet{}
	}
	parts := make([]string, len(refs))
	for i, r := range refs {
		parts[i] = r.object.String() + "#" + strconv.Itoa(r.index)
		if r.unserves {
			parts[i] += unservesMark
		}
	}
	return PatchSet{unique.Make(strings.Join(parts, ","))}
}

func (s PatchSet) refs() []patchRef {
	if s == (PatchSet{}) {
		return nil
	}
	var out []patchRef
	for part := range strings.SplitSeq(s.h.Value(), ",") {
		name, index, _ := strings.Cut(part, "#")
		ns, name, _ := strings.Cut(name, "/")
		index, unserves := strings.CutSuffix(index, unservesMark)
		i, err := strconv.Atoi(index)
		if err != nil {
			panic(err) // only makePatchSet makes handles
		}
		out = append(out, patchRef{ObjectName{ns, name}, i, unserves})
	}
	return out
}

// has reports whether any patch of an object is in the set.
func (s PatchSet) has(n ObjectName) bool {
	return slices.ContainsFunc(s.refs(), func(r patchRef) bool { return r.object == n })
}

// unserves reports whether any patch of the set does.
func (s PatchSet) unserves() bool {
	return s != (PatchSet{}) && strings.Contains(s.h.Value(), unservesMark) // no name of an object has it
}

// patch is one patch of an EnvoyFilter, decoded.
type patch struct {
	object  *mesh.Object
	index   int
	applyTo networking.EnvoyFilter_ApplyTo
	op      networking.EnvoyFilter_Patch_Operation
	class   networking.EnvoyFilter_Patch_FilterClass
	match   *networking.EnvoyFilter_EnvoyConfigObjectMatch
	value   proto.Message // nil if there is none
	// replaces: lists that a merged value has replace those that are there.
	replaces bool
	version  *regexp.Regexp
	// err is why the patch is never applied.
	err error
}

// patchTable is all EnvoyFilters, decoded.
type patchTable struct {
	byName      map[ObjectName][]*patch
	byNamespace map[string][]*mesh.Object // by priority, then age
}

// patches returns the table of the catalog's EnvoyFilters.
func patches(in Inputs) *patchTable {
	return registry.Derived(in.Catalog, mesh.KindEnvoyFilter, func(all []*mesh.Object) *patchTable {
		t := &patchTable{byName: map[ObjectName][]*patch{}, byNamespace: map[string][]*mesh.Object{}}
		for _, o := range all {
			f, ok := o.Spec.(*networking.EnvoyFilter)
			if !ok {
				continue
			}
			list := make([]*patch, len(f.GetConfigPatches()))
			for i, p := range f.GetConfigPatches() {
				list[i] = decodePatch(o, i, p)
			}
			t.byName[ObjectName{o.Key.Namespace, o.Key.Name}] = list
			t.byNamespace[o.Key.Namespace] = append(t.byNamespace[o.Key.Namespace], o)
		}
		for _, list := range t.byNamespace {
			slices.SortStableFunc(list, func(a, b *mesh.Object) int {
				return cmp.Compare(a.Spec.(*networking.EnvoyFilter).GetPriority(), b.Spec.(*networking.EnvoyFilter).GetPriority())
			})
		}
		return t
	})
}

// maxVersionPattern bounds the expression for the version of a proxy, in bytes.
const maxVersionPattern = 1024

func decodePatch(o *mesh.Object, i int, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) *patch {
	out := &patch{object: o, index: i, applyTo: p.GetApplyTo(), op: p.GetPatch().GetOperation(),
		class: p.GetPatch().GetFilterClass(), match: p.GetMatch()}
	if v := p.GetMatch().GetProxy().GetProxyVersion(); v != "" {
		if len(v) > maxVersionPattern {
			out.err = fmt.Errorf("match.proxy.proxyVersion is longer than %d characters; shorten it", maxVersionPattern)
			return out
		}
		if out.version, out.err = regexp.Compile(v); out.err != nil {
			return out
		}
	}
	d, err := envoypatch.Decode(p.GetApplyTo(), p.GetPatch().GetValue())
	if err != nil {
		out.err = err
		return out
	}
	out.value = d.Message
	if out.op == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST {
		out.op, out.replaces = networking.EnvoyFilter_Patch_MERGE, hasLists(out.applyTo)
	}
	switch out.op {
	case networking.EnvoyFilter_Patch_REMOVE:
	case networking.EnvoyFilter_Patch_INVALID:
		out.err = errors.New("patch.operation is missing; say what to do, as in MERGE or INSERT_BEFORE")
	case networking.EnvoyFilter_Patch_MERGE: // may hold a part only
		if out.value == nil {
			out.err = errors.New("patch.value is missing; operation MERGE needs it")
		}
	default:
		if out.value == nil {
			out.err = fmt.Errorf("patch.value is missing; operation %s needs it", out.op)
		} else {
			out.err = acceptable(out.value)
		}
		if !ordered(out.applyTo) && out.op != networking.EnvoyFilter_Patch_REPLACE {
			out.op = networking.EnvoyFilter_Patch_ADD // there is no order to insert by
		}
	}
	return out
}

// ordered reports whether a patch's operation may say where to insert.
func ordered(to networking.EnvoyFilter_ApplyTo) bool {
	switch to {
	case networking.EnvoyFilter_LISTENER_FILTER, networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_HTTP_FILTER, networking.EnvoyFilter_HTTP_ROUTE:
		return true
	}
	return false
}

// selectPatches lists the patches that are about a proxy: those of the root
// namespace, then those of its own, each object's in order, objects of a lower
// priority first.
func selectPatches(in Inputs, p *mesh.Proxy, v *View, labels map[string]string) PatchSet {
	var refs []patchRef
	table := patches(in)
	for _, ns := range slices.Compact([]string{in.Catalog.RootNamespace(), v.Namespace}) {
		for _, o := range table.byNamespace[ns] {
			if !attaches(v, o, labels) {
				continue
			}
			name := ObjectName{o.Key.Namespace, o.Key.Name}
			for _, x := range table.byName[name] {
				if x.isFor(p, v.Kind) {
					refs = append(refs, patchRef{name, x.index, x.unserves()})
				}
			}
		}
	}
	return makePatchSet(refs)
}

func (x *patch) unserves() bool {
	return x.applyTo == networking.EnvoyFilter_CLUSTER && x.op == networking.EnvoyFilter_Patch_REMOVE && x.match.GetCluster().GetService() != ""
}

// isFor reports whether a patch is for a kind of proxy, and for the version and
// the metadata of this one.
func (x *patch) isFor(p *mesh.Proxy, kind mesh.ProxyKind) bool {
	switch c := x.match.GetContext(); {
	case x.applyTo == networking.EnvoyFilter_BOOTSTRAP: // is the agent's
		return false
	case c == networking.EnvoyFilter_WAYPOINT, c == networking.EnvoyFilter_GATEWAY && kind != mesh.ProxyRouter:
		return false
	case (c == networking.EnvoyFilter_SIDECAR_INBOUND || c == networking.EnvoyFilter_SIDECAR_OUTBOUND) && kind != mesh.ProxySidecar:
		return false
	}
	if x.version != nil && (p.IstioVersion == "" || !x.version.MatchString(p.IstioVersion)) {
		return false
	}
	for k, want := range x.match.GetProxy().GetMetadata() {
		if metadataText(p, k) != want {
			return false
		}
	}
	return true
}

// metadataText is a text in a proxy's metadata, "" if it has none of that name.
func metadataText(p *mesh.Proxy, key string) string {
	if s, ok := p.Metadata[key].(string); ok {
		return s
	}
	switch key { // what has a field of its own
	case "CLUSTER_ID":
		return string(p.Cluster)
	case "NETWORK":
		return string(p.Network)
	case "NAMESPACE":
		return p.Namespace
	case "SERVICE_ACCOUNT":
		return p.ServiceAccount
	case "WORKLOAD_NAME":
		return p.WorkloadName
	case "NODE_NAME":
		return p.NodeName
	case "MESH_ID":
		return p.MeshID
	case "ISTIO_VERSION":
		return p.IstioVersion
	case "INTERCEPTION_MODE":
		return string(p.Interception)
	}
	return ""
}

// patcher applies a view's patches to one resource.
type patcher struct {
	in   Inputs
	list []*patch
	// side is SIDECAR_INBOUND or SIDECAR_OUTBOUND. Patches for other kinds of
	// proxies are not in the list: one with context GATEWAY is for a gateway.
	side networking.EnvoyFilter_PatchContext
	// of names the resource, for reports.
	of string
}

func newPatcher(in Inputs, v View, side networking.EnvoyFilter_PatchContext, of string) *patcher {
	p := &patcher{in: in, side: side, of: of}
	if v.Patches != (PatchSet{}) {
		p.list = resolvePatches(in, v.Patches)
	}
	return p
}

// resolvePatches finds the patches that a set names.
func resolvePatches(in Inputs, s PatchSet) []*patch {
	var out []*patch
	table := patches(in)
	for _, r := range s.refs() {
		if list := table.byName[r.object]; r.index < len(list) {
			out = append(out, list[r.index])
		}
	}
	return out
}

// having lists the patches of a kind whose context is the resource's and that are
// not known to be faulty. Faulty ones are reported.
func (p *patcher) having(to networking.EnvoyFilter_ApplyTo) []*patch {
	var out []*patch
	for _, x := range p.list {
		if x.applyTo != to || !x.inContext(p.side) {
			continue
		}
		if x.err != nil {
			p.fail(x, x.err)
			continue
		}
		out = append(out, x)
	}
	return out
}

// inContext reports whether a patch is for a side of a proxy.
func (x *patch) inContext(side networking.EnvoyFilter_PatchContext) bool {
	c := x.match.GetContext()
	return c == networking.EnvoyFilter_ANY || c == networking.EnvoyFilter_GATEWAY || c == side
}

// fail reports a patch that was not applied.
func (p *patcher) fail(x *patch, err error) {
	if p.in.Report == nil {
		return
	}
	p.in.Report(x.object, "spec.configPatches["+strconv.Itoa(x.index)+"]",
		fmt.Sprintf("is left out of %s, everything else is served: %v", p.of, err))
}

// applied replaces a part of a resource by what change makes of a copy, if it
// succeeds and proxies would accept the result.
func applied[M proto.Message](p *patcher, x *patch, part M, change func(M) error) (M, bool) {
	next := proto.CloneOf(part)
	err := change(next)
	if err == nil {
		err = acceptable(next)
	}
	if err != nil {
		p.fail(x, err)
		return part, false
	}
	return next, true
}

// valueOf returns a copy of a patch's value, false if it is of another type.
func valueOf[M proto.Message](p *patcher, x *patch) (M, bool) {
	v, ok := x.value.(M)
	if !ok {
		p.fail(x, fmt.Errorf("value is a %T", x.value))
		return v, false
	}
	return proto.CloneOf(v), true
}
