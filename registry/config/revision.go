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
