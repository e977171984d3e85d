package mesh

import (
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// SelectsLabels reports whether a selector of MeshConfig takes labels, as
// Kubernetes' do. An operator that is not known takes none.
func SelectsLabels(s *meshconfig.LabelSelector, labels map[string]string) bool {
	for k, want := range s.GetMatchLabels() {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	for _, e := range s.GetMatchExpressions() {
		got, has := labels[e.GetKey()]
		listed := has && slices.Contains(e.GetValues(), got)
		switch e.GetOperator() {
		case "In":
			has = listed
		case "NotIn":
			has = !listed
		case "Exists":
		case "DoesNotExist":
			has = !has
		default:
			has = false
		}
		if !has {
			return false
		}
	}
	return true
}
