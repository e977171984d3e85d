package config

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestStatus(t *testing.T) {
	read := func(kind, status string) *mesh.Object {
		k, ok := Lookup("networking.istio.io/v1", kind)
		require.True(t, ok)
		spec := `{"hosts":["a.example"],"ports":[{"number":80,"name":"http","protocol":"HTTP"}],"resolution":"DNS"}`
		if kind == "WorkloadEntry" {
			spec = `{"address":"192.0.2.1"}`
		}
		o, err := Decode("east", k, []byte(`{"metadata":{"name":"x","namespace":"shop"},"spec":`+spec+`,"status":`+status+`}`))
		require.NoError(t, err)
		return o
	}
	plain := read("ServiceEntry", `null`)
	require.Nil(t, plain.Status)
	for _, s := range []string{`{}`, `"odd"`, `{"addresses":7}`, `{"addresses":[{"value":"x","host":"a.example"},{"value":"240.240.0.1"},{"value":"0.0.0.0","host":"a"}]}`} {
		o := read("ServiceEntry", s)
		require.Nil(t, o.Status, s)
		require.Equal(t, plain.Version, o.Version)
	}
	o := read("ServiceEntry", `{"addresses":[{"value":"240.240.0.1","host":"A.example."},{"value":"2001:2::1","host":"a.example"}],"conditions":[]}`)
	require.Equal(t, []mesh.HostAddress{{Host: "a.example", Address: netip.MustParseAddr("240.240.0.1")}, {Host: "a.example", Address: netip.MustParseAddr("2001:2::1")}}, o.Status.Addresses)
	require.NotEqual(t, plain.Version, o.Version, "a version of our own tells of the status")

	require.Nil(t, read("WorkloadEntry", `{"conditions":[{"type":"Other","status":"True"}]}`).Status)
	require.Equal(t, mesh.HealthReady, read("WorkloadEntry", `{"conditions":[{"type":"Healthy","status":"True"}]}`).Status.Health)
	require.Equal(t, mesh.HealthNotReady, read("WorkloadEntry", `{"conditions":[{"type":"Healthy","status":"Unknown"}]}`).Status.Health)
}
