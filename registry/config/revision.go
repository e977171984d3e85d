package config

import "cmp"

const (
	// labelRevision names the control plane that an object is for.
	labelRevision = "istio.io/rev"
	// defaultRevision is the name of the revision that has none.
	defaultRevision = "default"
)

// InRevision reports whether an object with the labels is for the control plane
// of a revision: it names that one, or none. "" and "default" are one revision.
// (Istio: https://istio.io/latest/docs/setup/upgrade/canary/)
func InRevision(labels map[string]string, revision string) bool {
	asked := labels[labelRevision]
	return asked == "" || asked == cmp.Or(revision, defaultRevision)
}

// DefaultRevision reports whether a revision is the default one, which "" is too.
func DefaultRevision(revision string) bool {
	return cmp.Or(revision, defaultRevision) == defaultRevision
}

// NameOf is the name under which a revision keeps what each has of its own: name
// for the default one, name-REVISION for others.
func NameOf(name, revision string) string {
	if DefaultRevision(revision) {
		return name
	}
	return name + "-" + revision
}

// MeshConfigMap is the name of the ConfigMap that holds the mesh configuration of
// a revision.
func MeshConfigMap(revision string) string { return NameOf("istio", revision) }
