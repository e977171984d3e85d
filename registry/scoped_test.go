package registry

import (
	"fmt"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// The scoped hosts that edits lead to are those that the services have, and
// earlier catalogs keep theirs.
func TestScopedHostsFollowTheServices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewStore(Config{Primary: primary})
		sinks := map[mesh.ClusterID]Sink{}
		for _, id := range []mesh.ClusterID{primary, "other"} {
			sinks[id] = s.NewSink(id)
			sinks[id].Replace(Update{Cluster: &ClusterState{}})
		}
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			old := s.Catalog()
			had := maps.Clone(old.scoped)
			var u Update
			n := rapid.SampledFrom([]int{1, 1, 2, bulk}).Draw(t, "services")
			for i := range n {
				st := ServiceState{Key: mesh.ServiceKey{Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"),
					Hostname: mesh.Hostname(fmt.Sprintf("h%d", rapid.IntRange(0, 2).Draw(t, "host")+i/3*3))}}
				if rapid.IntRange(0, 2).Draw(t, "gone") > 0 {
					st.Definition = &mesh.Definition{ExportTo: rapid.SampledFrom([][]string{nil, {"*"}, {"."}, {"b", "*"}, {"b"}}).Draw(t, "exportTo"),
						Private: rapid.IntRange(0, 3).Draw(t, "private") == 0}
				}
				u.Services = append(u.Services, st)
			}
			sinks[rapid.SampledFrom([]mesh.ClusterID{primary, "other"}).Draw(t, "cluster")].Apply(u)

			want := map[mesh.Hostname]struct{}{}
			for svc := range s.Catalog().Services() {
				alike := true
				for _, ns := range []string{"a", "b", "c"} {
					alike = alike && svc.VisibleTo(ns, nil)
				}
				if !alike || len(s.Catalog().Host(svc.Key.Hostname)) > 1 {
					want[svc.Key.Hostname] = struct{}{}
				}
			}
			got := map[mesh.Hostname]struct{}{}
			for h := range s.Catalog().ScopedHosts() {
				got[h] = struct{}{}
			}
			require.Equal(t, want, got)
			require.True(t, maps.Equal(had, old.scoped))
		}
	})
}
