package registry

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestMergeService(t *testing.T) {
	k := key("a")
	conflict := func(field string, winner, loser mesh.ClusterID, detail string) mesh.Conflict {
		return mesh.Conflict{Service: k, Field: field, Winner: winner, Loser: loser, Detail: detail}
	}
	tests := []struct {
		name      string
		in        map[mesh.ClusterID][]string
		lead      mesh.ClusterID
		ports     []string
		conflicts []mesh.Conflict
	}{
		{
			name: "the primary leads", lead: "east", ports: []string{"http:80/HTTP"},
			in: map[mesh.ClusterID][]string{"east": {"http:80/HTTP"}, "alps": {"http:80/HTTP"}},
		},
		{
			name: "else the first by name", lead: "alps", ports: []string{"http:80/HTTP"},
			in: map[mesh.ClusterID][]string{"west": {"http:80/HTTP"}, "alps": {"http:80/HTTP"}},
		},
		{
			name: "ports are united", lead: "east", ports: []string{"http:80/HTTP", "admin:90/TCP", "grpc:70/GRPC"},
			in: map[mesh.ClusterID][]string{"east": {"http:80/HTTP"}, "alps": {"admin:90/TCP"}, "west": {"http:80/HTTP", "grpc:70/GRPC"}},
		},
		{
			name: "another protocol", lead: "east", ports: []string{"http:80/HTTP"},
			in:        map[mesh.ClusterID][]string{"east": {"http:80/HTTP"}, "west": {"http:80/TCP"}},
			conflicts: []mesh.Conflict{conflict("protocol", "east", "west", "port 80 (http) is HTTP here, TCP there")},
		},
		{
			name: "another number", lead: "east", ports: []string{"http:80/HTTP"},
			in:        map[mesh.ClusterID][]string{"east": {"http:80/HTTP"}, "west": {"http:8080/HTTP"}},
			conflicts: []mesh.Conflict{conflict("port number", "east", "west", `port "http" is 80 here, 8080 there`)},
		},
		{
			name: "another name, and who wins need not lead", lead: "east", ports: []string{"http:80/HTTP", "x:90/TCP"},
			in:        map[mesh.ClusterID][]string{"east": {"http:80/HTTP"}, "alps": {"x:90/TCP"}, "west": {"y:90/TCP"}},
			conflicts: []mesh.Conflict{conflict("port name", "alps", "west", `port 90 is called "x" here, "y" there`)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := map[mesh.ClusterID]*mesh.Definition{}
			for id, ports := range tt.in {
				in[id] = definition(id, k, ports...)
			}
			svc := mergeService(k, primary, in)
			require.Equal(t, tt.lead, svc.LeadCluster)
			require.Same(t, in[tt.lead], svc.Lead)
			require.Equal(t, definition("", k, tt.ports...).Ports, svc.Ports)
			require.Equal(t, tt.conflicts, svc.Conflicts)
			require.Len(t, svc.Clusters, len(in))
		})
	}
	require.Nil(t, mergeService(k, primary, nil))
}

func TestMergeServiceRecordsOtherConflicts(t *testing.T) {
	k := key("a")
	east, west := definition("east", k, "http:80/HTTP"), definition("west", k, "http:80/HTTP")
	west.Resolution, west.TrafficDistribution, west.ExportTo = mesh.ResolutionPassthrough, "PreferClose", []string{"."}
	svc := mergeService(k, primary, map[mesh.ClusterID]*mesh.Definition{"east": east, "west": west})
	var fields []string
	for _, c := range svc.Conflicts {
		fields = append(fields, c.Field)
		require.Equal(t, mesh.ClusterID("west"), c.Loser)
	}
	require.Equal(t, []string{"resolution", "trafficDistribution", "exportTo"}, fields)
}
