package inject_test

import (
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"istio.io/api/annotation"
	"istio.io/api/label"
)

// TestDocsNameEverySetting: docs/injection.md says of every annotation and label
// that Istio documents for pods what it does here.
func TestDocsNameEverySetting(t *testing.T) {
	text, err := os.ReadFile("../../docs/injection.md")
	require.NoError(t, err)
	for _, a := range annotation.AllResourceAnnotations() {
		if slices.Contains(a.Resources, annotation.Pod) {
			require.Contains(t, string(text), "`"+a.Name+"`")
		}
	}
	for _, l := range label.AllResourceLabels() {
		if slices.Contains(l.Resources, label.Pod) {
			require.Contains(t, string(text), "`"+l.Name+"`")
		}
	}
}
