package registry

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// TestProblems: a refusal is told before parts that are left out, which come to
// light again when it is over; listeners hear of what reads differently only.
func TestProblems(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0)
	p := NewProblems(func() time.Time { return now })
	heard := 0
	cancel := p.OnChange(func() {
		heard++
		p.List() // may be asked at once
	})
	ref := mesh.ObjectRef{Cluster: "east", Kind: "EnvoyFilter", Namespace: "shop", Name: "x"}
	steps := []struct {
		do      func()
		changes bool
		message string // "" for no problem
		parts   int
	}{
		{func() { p.SetParts(ref, 1, []Part{{"a", "is bad"}}) }, true, "is bad", 1},
		{func() { p.SetParts(ref, 1, []Part{{"a", "is bad"}}) }, false, "is bad", 1},
		{func() { p.SetParts(ref, 1, []Part{{"a", "is bad"}, {"b", "too"}}) }, true, "a is bad; b too", 2},
		{func() { require.True(t, p.Set(ref, "c", "is worse")) }, true, "is worse", 0},
		{func() { require.False(t, p.Set(ref, "c", "is worse")) }, false, "is worse", 0},
		{func() { require.True(t, p.Clear(ref)) }, true, "a is bad; b too", 2},
		{func() { require.False(t, p.Clear(ref)) }, false, "a is bad; b too", 2},
		{func() { p.SetParts(ref, 2, []Part{{"a", "is bad"}, {"b", "too"}}) }, true, "a is bad; b too", 2},
		{func() { p.ClearCluster("west") }, false, "a is bad; b too", 2},
		{func() { p.SetParts(ref, 0, nil) }, true, "", 0},
		{func() { p.SetParts(ref, 0, nil) }, false, "", 0},
		{func() { p.SetParts(ref, 1, []Part{{"a", "is bad"}}) }, true, "is bad", 1},
		{func() { p.ClearCluster("east") }, true, "", 0},
	}
	for i, step := range steps {
		before := heard
		now = now.Add(time.Second)
		step.do()
		require.Equal(t, step.changes, heard > before, "step %d", i)
		list := p.List()
		if step.message == "" {
			require.Empty(t, list, "step %d", i)
			continue
		}
		require.Len(t, list, 1, "step %d", i)
		require.Equal(t, step.message, list[0].Message, "step %d", i)
		require.Len(t, list[0].Parts, step.parts, "step %d", i)
	}
	cancel()
	before := heard
	p.Set(ref, "", "m")
	require.Equal(t, before, heard)
}
