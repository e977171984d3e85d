package serve

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TestLeftOut: each part is named and logged once, and what was said of a former
// version of an object counts no more.
func TestLeftOut(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	problems := registry.NewProblems(nil)
	var current *mesh.Object
	l := newLeftOut(problems, func(mesh.ObjectKey) *mesh.Object { return current }, zap.New(core), prometheus.NewRegistry())
	changed := func(to *mesh.Object) {
		current = to
		l.changed(registry.Change{Objects: map[mesh.ObjectKey]registry.ObjectChange{{Kind: mesh.KindEnvoyFilter, Namespace: "a", Name: "x"}: {}}})
	}
	o := &mesh.Object{Key: mesh.ObjectKey{Kind: mesh.KindEnvoyFilter, Namespace: "a", Name: "x"}, Version: "1", Generation: 1, Spec: &networking.EnvoyFilter{Priority: 1},
		Origin: mesh.ObjectRef{Cluster: "c1", Kind: "EnvoyFilter", Namespace: "a", Name: "x"}}
	l.note(o, "spec.configPatches[1]", "is not there any more")
	require.Zero(t, logs.Len(), "an object that is gone")
	changed(o)
	l.note(o, "spec.configPatches[1]", "does not fit listener a")
	l.note(o, "spec.configPatches[1]", "does not fit listener b")
	require.Equal(t, 1, logs.Len())
	require.Equal(t, 1, l.count())
	require.Equal(t, "spec.configPatches[1]", problems.List()[0].Field)
	l.note(o, "spec.configPatches[0]", "is no filter")
	require.Equal(t, 2, logs.Len())
	require.Equal(t, "spec.configPatches[0] is no filter; spec.configPatches[1] does not fit listener a", problems.List()[0].Message)

	require.Len(t, problems.List()[0].Parts, 2)
	require.Equal(t, int64(1), problems.List()[0].Generation)

	written := *o // somebody wrote a status
	written.Version, written.Status = "2", &mesh.ObjectStatus{Health: mesh.HealthReady}
	changed(&written)
	l.note(&written, "spec.configPatches[0]", "is no filter")
	require.Equal(t, 2, l.count())
	require.Equal(t, 2, logs.Len())

	problems.Set(o.Origin, "spec.priority", "is no number") // a newer reading is refused: what was known is served
	require.Equal(t, "is no number", problems.List()[0].Message)
	problems.Clear(o.Origin)
	require.Len(t, problems.List()[0].Parts, 2)

	next := *o
	next.Version, next.Generation, next.Spec = "3", 2, &networking.EnvoyFilter{Priority: 2}
	changed(&next)
	require.Zero(t, l.count())
	require.Empty(t, problems.List())
	l.note(o, "spec.configPatches[1]", "does not fit listener a")
	require.Empty(t, problems.List(), "a late word about what is no more")
	l.note(&next, "spec.configPatches[0]", "is no filter")
	require.Equal(t, 1, l.count())
	require.Equal(t, "is no filter", problems.List()[0].Message)
	l.settle(&next, "spec.configPatches[0]")
	require.Empty(t, problems.List())
	l.note(&next, "spec.configPatches[0]", "is no filter")
	changed(nil)
	require.Empty(t, problems.List())
}
