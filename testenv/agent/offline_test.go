package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/ca"
)

// makeIntermediate makes a root in DIR/root and the issuer of cluster c1 in DIR/c1.
func makeIntermediate(t *testing.T, dir string) {
	t.Helper()
	_, err := ca.MakeRoot(ca.RootOptions{Dir: dir + "/root"})
	require.NoError(t, err)
	_, err = ca.MakeIntermediate(ca.IntermediateOptions{RootDir: dir + "/root", Dir: dir + "/c1", Cluster: "c1"})
	require.NoError(t, err)
}
