package multicluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func origin(name string, age int) Origin {
	return Origin{Namespace: "istio-system", Name: name, UID: "uid-" + name, Created: time.Unix(int64(age), 0), Key: "k"}
}

func TestDecidePrecedence(t *testing.T) {
	at := time.Unix(1, 0)
	for name, tt := range map[string]struct{ winner, loser Origin }{
		"older":           {Origin{Namespace: "n", Name: "z", Created: at}, Origin{Namespace: "n", Name: "a", Created: at.Add(time.Second)}},
		"name":            {Origin{Namespace: "n", Name: "a", UID: "2", Created: at}, Origin{Namespace: "n", Name: "b", UID: "1", Created: at}},
		"namespace first": {Origin{Namespace: "m", Name: "b", Created: at}, Origin{Namespace: "n", Name: "a", Created: at}},
		"uid":             {Origin{Namespace: "n", Name: "a", UID: "1", Created: at}, Origin{Namespace: "n", Name: "a", UID: "2", Created: at}},
		"file by name":    {Origin{Name: "/d/a.yaml"}, Origin{Name: "/d/b.yaml"}},
	} {
		a, b := claim{id: "c", origin: tt.winner, content: "1"}, claim{id: "c", origin: tt.loser, content: "2"}
		for _, claims := range [][]claim{{a, b}, {b, a}} {
			d := decide(claims)
			require.Equal(t, a, d.owners["c"], name)
			require.Len(t, d.refusals, 1, name)
			require.Equal(t, b.origin, d.refusals[0].Origin, name)
			require.Equal(t, ReasonDuplicate, d.refusals[0].Reason, name)
		}
	}
}

func TestDecideRefuses(t *testing.T) {
	d := decide([]claim{
		{id: "primary", origin: origin("a", 1)}, {id: "", origin: origin("b", 2)}, {id: "a b", origin: origin("c", 3)},
		{id: mesh.ClusterID(make([]byte, 300)), origin: origin("d", 4)},
		{id: "", origin: Origin{Name: "/d/x.yaml"}, problem: "it is empty"},
		{id: "ok", origin: origin("e", 5), problem: "it is empty"},
	}, "primary")
	var reasons []string
	for _, r := range d.refusals {
		reasons = append(reasons, r.Reason)
		require.Contains(t, r.Message, r.Origin.describe())
	}
	require.Equal(t, []string{ReasonKubeconfig, ReasonPrimary, ReasonID, ReasonID, ReasonID, ReasonKubeconfig}, reasons)
	require.Len(t, d.owners, 1)
}

func TestPlanCluster(t *testing.T) {
	now := time.Unix(1000, 0)
	good, next, bad := claim{id: "c", content: "1"}, claim{id: "c", content: "2"}, claim{id: "c", content: "3", problem: "broken"}
	inst := func(g uint64, content string, flags ...string) *instanceState {
		return &instanceState{generation: g, content: content, synced: slices.Contains(flags, "synced"), exited: slices.Contains(flags, "exited")}
	}
	for _, tt := range []struct {
		name  string
		owner claim
		state clusterState
		want  []string
		due   time.Time
	}{
		{"new", good, clusterState{}, []string{"start 1"}, time.Time{}},
		{"new and broken", bad, clusterState{}, nil, time.Time{}},
		{"on its way", good, clusterState{candidate: inst(1, "1")}, nil, time.Time{}},
		{"reported", good, clusterState{candidate: inst(1, "1", "synced")}, []string{"promote #1"}, time.Time{}},
		{"serving", good, clusterState{target: good, serving: inst(1, "1", "synced")}, nil, time.Time{}},
		{"rotated", next, clusterState{target: good, serving: inst(1, "1", "synced")}, []string{"start 2"}, time.Time{}},
		{"rotated while starting", next, clusterState{target: good, candidate: inst(1, "1")}, []string{"abandon #1", "start 2"}, time.Time{}},
		{"rotated and reported at once", next, clusterState{target: good, candidate: inst(1, "1", "synced")}, []string{"promote #1", "start 2"}, time.Time{}},
		{"taken back", good, clusterState{target: next, serving: inst(1, "1", "synced"), candidate: inst(2, "2")}, []string{"abandon #2"}, time.Time{}},
		{"broken while serving", bad, clusterState{target: good, serving: inst(1, "1", "synced")}, nil, time.Time{}},
		{"broken while rotating", bad, clusterState{target: next, serving: inst(1, "1", "synced"), candidate: inst(2, "2")}, nil, time.Time{}},
		{"broken and ended", bad, clusterState{target: good, serving: inst(1, "1", "synced", "exited")}, []string{"start 1"}, time.Time{}},
		{"ended, too early", good, clusterState{target: good, serving: inst(1, "1", "synced", "exited"), failed: "1", retryAt: now.Add(1)}, nil, now.Add(1)},
		{"ended, due", good, clusterState{target: good, serving: inst(1, "1", "synced", "exited"), failed: "1", retryAt: now}, []string{"start 1"}, time.Time{}},
		{"candidate ended", next, clusterState{target: next, serving: inst(1, "1", "synced"), candidate: inst(2, "2", "exited"), failed: "2", retryAt: now.Add(1)},
			[]string{"abandon #2"}, now.Add(1)},
		{"another content need not wait", next, clusterState{target: good, serving: inst(1, "1", "synced", "exited"), failed: "1", retryAt: now.Add(1)}, []string{"start 2"}, time.Time{}},
		{"reported and ended", good, clusterState{target: good, candidate: inst(1, "1", "synced", "exited"), failed: "1", retryAt: now.Add(1)}, []string{"promote #1"}, now.Add(1)},
	} {
		actions, due := planCluster(tt.owner, tt.state, now)
		var got []string
		for _, a := range actions {
			require.Equal(t, mesh.ClusterID("c"), a.id)
			if a.verb == verbStart {
				got = append(got, a.verb.String()+" "+a.claim.content)
			} else {
				got = append(got, fmt.Sprintf("%s #%d", a.verb, a.generation))
			}
		}
		require.Equal(t, tt.want, got, tt.name)
		require.Equal(t, tt.due, due, tt.name)
	}
}

// model runs plans without any goroutine.
type model struct {
	claims     map[string]claim // by name of the secret
	running    map[mesh.ClusterID]clusterState
	generation uint64
	now        time.Time
}

func (m *model) owners() map[mesh.ClusterID]claim {
	var all []claim
	for _, c := range m.claims {
		all = append(all, c)
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return decide(all, "primary").owners
}

// step plans once, carries the plan out and checks what must always hold.
func (m *model) step(t require.TestingT) int {
	owners := m.owners()
	served := map[mesh.ClusterID]bool{}
	for id, s := range m.running {
		served[id] = s.serving != nil
	}
	actions, _ := plan(owners, m.running, m.now)
	for id, o := range owners {
		if s := m.running[id]; o.problem == "" {
			s.target = o
			m.running[id] = s
		} else if _, ok := m.running[id]; !ok {
			m.running[id] = clusterState{}
		}
	}
	for _, a := range actions {
		s := m.running[a.id]
		switch a.verb {
		case verbDrop:
			delete(m.running, a.id)
			continue
		case verbPromote:
			require.True(t, s.candidate.synced)
			require.Equal(t, a.generation, s.candidate.generation)
			s.serving, s.candidate = s.candidate, nil
		case verbAbandon:
			require.False(t, s.candidate.synced, "data would be lost")
			require.Equal(t, a.generation, s.candidate.generation)
			s.candidate = nil
		case verbStart:
			require.Nil(t, s.candidate, "a third instance")
			require.Empty(t, a.claim.problem)
			m.generation++
			s.candidate = &instanceState{generation: m.generation, content: a.claim.content}
		}
		m.running[a.id] = s
	}
	for id := range owners {
		if served[id] {
			require.NotNil(t, m.running[id].serving, "%s was served and is still claimed", id)
		}
	}
	for id := range m.running {
		require.Contains(t, owners, id, "nobody claims it")
	}
	return len(actions)
}

// settle lets every instance report until nothing is left to do.
func (m *model) settle(t require.TestingT) {
	for range 20 {
		m.now = m.now.Add(time.Hour)
		n := m.step(t)
		for _, s := range m.running {
			if s.candidate != nil {
				s.candidate.synced = true
				n++
			}
		}
		if n == 0 {
			return
		}
	}
	require.Fail(t, "does not settle")
}

// TestPlanConverges: whatever happened, in whatever order, what runs in the
// end is what the kubeconfigs ask for, once.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{claims: map[string]claim{}, running: map[mesh.ClusterID]clusterState{}, now: time.Unix(1, 0)}
		ids := []mesh.ClusterID{"c1", "c2", "primary"}
		pick := func() (mesh.ClusterID, clusterState) {
			id := rapid.SampledFrom(ids).Draw(t, "cluster")
			return id, m.running[id]
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				name := rapid.SampledFrom([]string{"s1", "s2", "s3"}).Draw(t, "secret")
				c := claim{
					id: rapid.SampledFrom(ids).Draw(t, "cluster"), origin: origin(name, rapid.IntRange(0, 2).Draw(t, "age")),
					content: rapid.SampledFrom([]string{"A", "B", "C"}).Draw(t, "content"),
				}
				if rapid.IntRange(0, 3).Draw(t, "broken") == 0 {
					c.problem = "broken"
				}
				m.claims[name] = c
			},
			"delete": func(t *rapid.T) {
				delete(m.claims, rapid.SampledFrom([]string{"s1", "s2", "s3"}).Draw(t, "secret"))
			},
			"sync": func(t *rapid.T) {
				if _, s := pick(); s.candidate != nil && !s.candidate.exited {
					s.candidate.synced = true
				}
			},
			"end": func(t *rapid.T) {
				id, s := pick()
				for _, i := range []*instanceState{s.serving, s.candidate} {
					if i != nil && rapid.Bool().Draw(t, "this one") {
						i.exited = true
						s.failed, s.retryAt = i.content, m.now.Add(time.Minute)
						m.running[id] = s
					}
				}
			},
			"wait":      func(*rapid.T) { m.now = m.now.Add(45 * time.Second) },
			"reconcile": func(t *rapid.T) { m.step(t) },
			"":          func(*rapid.T) {},
		})
		m.settle(t)
		owners := m.owners()
		require.Len(t, m.running, len(owners))
		for id, owner := range owners {
			s := m.running[id]
			require.Nil(t, s.candidate)
			if owner.problem == "" {
				require.NotNil(t, s.serving, "%s", id)
				require.Equal(t, owner.content, s.serving.content, "%s", id)
				require.False(t, s.serving.exited)
			}
		}
		require.NotContains(t, owners, mesh.ClusterID("primary"))
	})
}

// TestDecideIgnoresOrder: every replica decides alike.
func TestDecideIgnoresOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		claims := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) claim {
			return claim{
				id:      rapid.SampledFrom([]mesh.ClusterID{"c1", "c2", "primary", ""}).Draw(t, "id"),
				origin:  origin(rapid.StringMatching(`[ab]`).Draw(t, "name"), rapid.IntRange(0, 1).Draw(t, "age")),
				content: rapid.StringMatching(`[xy]`).Draw(t, "content"), problem: rapid.SampledFrom([]string{"", "broken"}).Draw(t, "problem"),
			}
		}), 0, 8).Draw(t, "claims")
		want := decide(claims, "primary")
		require.Equal(t, want, decide(rapid.Permutation(claims).Draw(t, "shuffled"), "primary"))
		require.Equal(t, len(claims), len(want.owners)+len(slices.DeleteFunc(slices.Clone(want.refusals), func(r Refusal) bool {
			_, owns := want.owners[r.ID]
			return owns && r.Reason == ReasonKubeconfig
		})), "every claim owns or is refused")
	})
}
