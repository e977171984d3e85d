package envoypatch

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
)

func valueOf(t testing.TB, text string) *structpb.Struct {
	var s structpb.Struct
	require.NoError(t, protojson.Unmarshal([]byte(text), &s))
	return &s
}

// TestEveryTarget: whatever a patch can be applied to has a message.
func TestEveryTarget(t *testing.T) {
	for n, name := range networking.EnvoyFilter_ApplyTo_name {
		to := networking.EnvoyFilter_ApplyTo(n)
		if to == networking.EnvoyFilter_INVALID {
			require.Nil(t, New(to))
			continue
		}
		require.NotNil(t, New(to), name)
		d, err := Decode(to, &structpb.Struct{})
		require.NoError(t, err, name)
		require.True(t, proto.Equal(New(to), d.Message), name)
		require.NoError(t, d.Strict, name)
	}
	_, err := Decode(networking.EnvoyFilter_INVALID, &structpb.Struct{})
	require.EqualError(t, err, "decode patch: nothing is known of applyTo INVALID")
	d, err := Decode(networking.EnvoyFilter_CLUSTER, nil)
	require.NoError(t, err)
	require.Equal(t, Decoded{}, d)
}

func TestDecode(t *testing.T) {
	d, err := Decode(networking.EnvoyFilter_CLUSTER, valueOf(t, `{"connect_timeout":"250ms","lbPolicy":"LEAST_REQUEST","newField":1}`))
	require.NoError(t, err)
	c := d.Message.(*clusterv3.Cluster)
	require.Equal(t, 250*time.Millisecond, c.GetConnectTimeout().AsDuration())
	require.Equal(t, clusterv3.Cluster_LEAST_REQUEST, c.GetLbPolicy())
	require.EqualError(t, d.Strict, `unknown field "newField"`)

	value := valueOf(t, `{"name":"lua","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua","inlineCode":"x"}}`)
	d, err = Decode(networking.EnvoyFilter_HTTP_FILTER, value)
	require.NoError(t, err)
	require.NoError(t, d.Strict)
	var lua luav3.Lua
	require.NoError(t, d.Message.(*hcmv3.HttpFilter).GetTypedConfig().UnmarshalTo(&lua))
	require.Equal(t, "x", lua.GetInlineCode()) //nolint:staticcheck // what users write
}

// TestUnknownTypes: proxies may know what is not known here, so it travels as a
// TypedStruct; what was given is left as it was.
func TestUnknownTypes(t *testing.T) {
	value := valueOf(t, `{"name":"x","typed_config":{"@type":"type.googleapis.com/acme.Filter","rate":5,"inner":{"@type":"acme.Inner"}}}`)
	before := proto.Clone(value)
	d, err := Decode(networking.EnvoyFilter_HTTP_FILTER, value)
	require.NoError(t, err)
	require.NoError(t, d.Strict)
	require.Equal(t, []string{"type.googleapis.com/acme.Filter"}, d.Unknown)
	doc, err := protojson.Marshal(d.Message)
	require.NoError(t, err)
	require.JSONEq(t, `{"name":"x","typedConfig":{"@type":"type.googleapis.com/udpa.type.v1.TypedStruct","typeUrl":"type.googleapis.com/acme.Filter","value":{"rate":5,"inner":{"@type":"acme.Inner"}}}}`, string(doc))
	require.True(t, proto.Equal(before, value))
}

func TestDecodeRefuses(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 70) + "1" + strings.Repeat("}", 70)
	for text, message := range map[string]string{
		`{"lb_policy":"FASTEST"}`: `decode patch: lb_policy: "FASTEST" is not a LbPolicy`,
		`{"load_assignment":{"endpoints":[{},{"lb_endpoints":[{"health_status":"WELL"}]}]}}`: `decode patch: load_assignment.endpoints[1].lb_endpoints[0].health_status: "WELL" is not a HealthStatus`,
		`{"typed_extension_protocol_options":{"a":{"b":1}}}`:                                 `decode patch: typed_extension_protocol_options[a]: has no @type; name the type of the message`,
		`{"connect_timeout":"soon"}`:                                                         `decode patch: invalid google.protobuf.Duration value "soon"`,
		`{"name":5}`:                                                                         `decode patch: invalid value for string field name: 5`,
	} {
		_, err := Decode(networking.EnvoyFilter_CLUSTER, valueOf(t, text))
		require.EqualError(t, err, message)
	}
	_, err := Decode(networking.EnvoyFilter_CLUSTER, valueOf(t, deep))
	require.ErrorContains(t, err, "nested deeper than 64 levels")
}

// FuzzDecode: no value panics, and what is decoded can be encoded.
func FuzzDecode(f *testing.F) {
	f.Add(int32(4), []byte(`{"name":"lua","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua","inlineCode":"x"}}`))
	f.Add(int32(8), []byte(`{"connect_timeout":"1m","transport_socket":{"typed_config":{"@type":"type.googleapis.com/google.protobuf.Struct","value":{"a":1}}}}`))
	f.Add(int32(1), []byte(`{"filter_chains":[{"filters":[{"typed_config":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1h"}}]}]}`))
	f.Add(int32(10), []byte(`{"node":{"metadata":{"@type":"","b":[{"@type":"x"}]}}}`))
	f.Fuzz(func(t *testing.T, to int32, doc []byte) {
		var tree map[string]any
		if json.Unmarshal(doc, &tree) != nil {
			return
		}
		s, err := structpb.NewStruct(tree)
		if err != nil {
			return
		}
		d, err := Decode(networking.EnvoyFilter_ApplyTo(to), s)
		if err != nil {
			return
		}
		if _, err := proto.Marshal(d.Message); err != nil {
			t.Fatal(err)
		}
		if _, err := protojson.Marshal(d.Message); err != nil {
			t.Fatal(err)
		}
	})
}
