package serve

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TestLeftOut: each part is named and logged once, and what was said of a former
// version of an object counts no more.
func TestLeftOut(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	problems := registry.NewProblems(nil)
	l := newLeftOut(problems, zap.New(core), prometheus.NewRegistry())
	o := &mesh.Object{Key: mesh.ObjectKey{Kind: mesh.KindEnvoyFilter, Namespace: "a", Name: "x"}, Version: "1",
		Origin: mesh.ObjectRef{Cluster: "c1", Kind: "EnvoyFilter", Namespace: "a", Name: "x"}}
	l.note(o, "spec.configPatches[1]", "does not fit listener a")
	l.note(o, "spec.configPatches[1]", "does not fit listener b")
	require.Equal(t, 1, logs.Len())
	require.Equal(t, 1, l.count())
	require.Equal(t, "spec.configPatches[1]", problems.List()[0].Field)
	l.note(o, "spec.configPatches[0]", "is no filter")
	require.Equal(t, 2, logs.Len())
	require.Equal(t, "spec.configPatches[0] is no filter; spec.configPatches[1] does not fit listener a", problems.List()[0].Message)

	next := *o
	next.Version = "2"
	problems.Clear(o.Origin) // as sources do when they read an object
	l.note(&next, "spec.configPatches[0]", "is no filter")
	require.Equal(t, 1, l.count())
	require.Equal(t, "is no filter", problems.List()[0].Message)
}
