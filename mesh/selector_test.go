package mesh

import (
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

func requirement(key, operator string, values ...string) *meshconfig.LabelSelectorRequirement {
	return &meshconfig.LabelSelectorRequirement{Key: key, Operator: operator, Values: values}
}

// TestSelectsLabels: selectors mean what Kubernetes' mean.
func TestSelectsLabels(t *testing.T) {
	selector := func(labels map[string]string, list ...*meshconfig.LabelSelectorRequirement) *meshconfig.LabelSelector {
		return &meshconfig.LabelSelector{MatchLabels: labels, MatchExpressions: list}
	}
	for _, c := range []struct {
		name     string
		selector *meshconfig.LabelSelector
		labels   map[string]string
		want     bool
	}{
		{"empty takes all", selector(nil), nil, true},
		{"label", selector(map[string]string{"a": "1"}), map[string]string{"a": "1", "b": "2"}, true},
		{"other value", selector(map[string]string{"a": "1"}), map[string]string{"a": "2"}, false},
		{"in", selector(nil, requirement("a", "In", "1", "2")), map[string]string{"a": "2"}, true},
		{"not in", selector(nil, requirement("a", "NotIn", "1", "2")), map[string]string{"a": "2"}, false},
		{"not in, absent", selector(nil, requirement("a", "NotIn", "1", "2")), nil, true},
		{"exists", selector(nil, requirement("a", "Exists")), map[string]string{"a": ""}, true},
		{"exists, absent", selector(nil, requirement("a", "Exists")), nil, false},
		{"does not exist", selector(nil, requirement("a", "DoesNotExist")), map[string]string{"a": ""}, false},
		{"all must hold", selector(map[string]string{"b": "1"}, requirement("a", "DoesNotExist")), map[string]string{"b": "2"}, false},
		{"unknown operator", selector(nil, requirement("a", "Gt", "1")), map[string]string{"a": "2"}, false},
	} {
		require.Equal(t, c.want, SelectsLabels(c.selector, c.labels), c.name)
	}
}
