package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// TestInstalledKinds: whatever a chart makes with any values is looked for when it
// is taken out.
func TestInstalledKinds(t *testing.T) {
	known := map[schema.GroupVersionKind]bool{}
	for _, gvk := range installedKinds() {
		known[gvk] = true
	}
	files, err := filepath.Glob("../../../manifests/testdata/golden/*.yaml")
	require.NoError(t, err)
	rendered, err := filepath.Glob("../../../manifests/rendered/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range append(files, rendered...) {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		objects, err := manifests.Decode(strings.NewReader(string(raw)))
		require.NoError(t, err)
		for _, o := range objects {
			require.True(t, known[o.GroupVersionKind()], "%s: %s %s would stay", file, o.GroupVersionKind(), o.GetName())
			require.Equal(t, o.GetNamespace() == "", clusterWide(o.GetKind()), "%s: %s", file, o.GetKind())
		}
	}
}
