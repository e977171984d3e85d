package entry

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// labelNamespaceName is what API servers label every namespace with.
const labelNamespaceName = "kubernetes.io/metadata.name"

// SetVisibility sets whom the mesh lets see ServiceEntries, MeshConfig's
// serviceEntryVisibility; nil lets everybody. What does not apply to sidecars
// applies to nobody here.
func (x *Index) SetVisibility(to *meshconfig.ServiceEntryVisibility) {
	if !to.GetApplyToSidecars() {
		to = nil
	}
	if proto.Equal(x.visibility, to) {
		return
	}
	before := x.visibility
	x.visibility = to
	for k, e := range maps.Clone(x.entries) {
		labels := x.namespaces[k.Namespace]
		if visibilityOf(before, k.Namespace, labels) != visibilityOf(to, k.Namespace, labels) {
			x.SetEntry(k, e.Object)
		}
	}
}

// SetNamespace tells of the labels of a namespace, nil if nobody knows it.
func (x *Index) SetNamespace(name string, labels map[string]string) {
	before := x.namespaces[name]
	if labels == nil {
		delete(x.namespaces, name)
	} else {
		x.namespaces[name] = labels
	}
	if visibilityOf(x.visibility, name, before) == visibilityOf(x.visibility, name, labels) {
		return
	}
	for k, e := range maps.Clone(x.entries) {
		if k.Namespace == name {
			x.SetEntry(k, e.Object)
		}
	}
}

// visibilityOf is whom a namespace's entries may be seen by: the first policy of
// which all rules take the namespace decides, and one without rules takes all. A
// rule of a kind that is not known takes none.
func visibilityOf(v *meshconfig.ServiceEntryVisibility, namespace string, labels map[string]string) meshconfig.ServiceEntryVisibility_Visibility {
	if v == nil {
		return meshconfig.ServiceEntryVisibility_PUBLIC
	}
	if _, ok := labels[labelNamespaceName]; !ok { // a folder of files need not say it
		named := map[string]string{labelNamespaceName: namespace}
		maps.Copy(named, labels)
		labels = named
	}
	to := v.GetDefaultVisibility()
	for _, p := range v.GetPolicies() {
		if !slices.ContainsFunc(p.GetMatchingRules(), func(r *meshconfig.ServiceEntryVisibility_MatchRule) bool {
			return r.GetNamespaceSelector() == nil || !mesh.SelectsLabels(r.GetNamespaceSelector(), labels)
		}) {
			to = p.GetVisibility()
			break
		}
	}
	if to == meshconfig.ServiceEntryVisibility_VISIBILITY_UNSPECIFIED {
		return meshconfig.ServiceEntryVisibility_PUBLIC
	}
	return to
}

// limit keeps of an entry what its namespace may make known. One that nobody may
// see defines no host.
func (e *Entry) limit(to meshconfig.ServiceEntryVisibility_Visibility) *Entry {
	switch to {
	case meshconfig.ServiceEntryVisibility_NONE:
		return &Entry{Object: e.Object}
	case meshconfig.ServiceEntryVisibility_NAMESPACE:
		e.base.Private = true
	}
	return e
}
