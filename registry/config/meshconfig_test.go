package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// Each case under testdata/mesh is what a user writes (NAME.yaml) and what is
// in force then (NAME.json); empty.yaml shows the defaults.
func TestParseMeshGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/mesh/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			text, err := os.ReadFile(f)
			require.NoError(t, err)
			m, err := ParseMesh(string(text))
			require.NoError(t, err)
			raw, err := protojson.Marshal(m)
			require.NoError(t, err)
			var got bytes.Buffer
			require.NoError(t, json.Indent(&got, raw, "", "  ")) // protojson varies its blanks on purpose
			golden := f[:len(f)-len("yaml")] + "json"
			if *update {
				require.NoError(t, os.WriteFile(golden, got.Bytes(), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.JSONEq(t, string(want), got.String())
		})
	}
}

func TestDefaultsAreNotShared(t *testing.T) {
	a := Defaults()
	a.Mesh.TrustDomain, a.Mesh.DefaultConfig.StatusPort, a.Mesh.ExtensionProviders[0].Name = "x", 1, "x"
	b := Defaults()
	require.Equal(t, "cluster.local", b.Mesh.TrustDomain)
	m, err := ParseMesh("")
	require.NoError(t, err)
	require.True(t, proto.Equal(b.Mesh, m), "nothing written is the defaults")
}

func TestParseMeshRefuses(t *testing.T) {
	tests := []struct{ text, message string }{
		{"a: [", "parse mesh configuration: not YAML: yaml: line 1: did not find expected node content"},
		{"- a", "parse mesh configuration: want an object, got a list"},
		{"trustDomain: a\ntrustDomain: b", `parse mesh configuration: not YAML: yaml: unmarshal errors:` + "\n" + `  line 2: key "trustDomain" already set in map`},
		{"trustDomain: [a]", "parse mesh configuration: trustDomain: want a string, got a list"},
		{`trustDomain: ""`, `validate mesh configuration: trustDomain: "" is not a domain: it is empty`},
		{"trustDomainAliases: [a/b]", `validate mesh configuration: trustDomainAliases[0]: "a/b" is not a domain: label "a/b" must be letters, digits and inner hyphens, at most 63`},
		{"connectTimeout: fast", `parse mesh configuration: connectTimeout: "fast" is not a duration; write it as in 1.5s, 500ms or 1h`},
		{"connectTimeout: 0s", "validate mesh configuration: connectTimeout: 0s is too short; use at least 1ms"},
		{"proxyListenPort: 0", "validate mesh configuration: proxyListenPort: 0 is not a port; use 1-65535"},
		{"proxyListenPort: 15006", "validate mesh configuration: proxyInboundListenPort: 15006 is also proxyListenPort; use two ports"},
		{"outboundTrafficPolicy: {mode: ALLOW}", `parse mesh configuration: outboundTrafficPolicy.mode: "ALLOW" is not known; use one of REGISTRY_ONLY, ALLOW_ANY, ALLOW_ANY_DYNAMIC_DNS`},
		{"rootNamespace: Istio", `validate mesh configuration: rootNamespace: "Istio" is not a namespace; use lower-case letters, digits and inner hyphens, at most 63`},
		{"defaultServiceExportTo: ['*', a]", `validate mesh configuration: defaultServiceExportTo[0]: "*" stands for itself; remove it or the other entries`},
		{"defaultServiceExportTo: [a, a]", `validate mesh configuration: defaultServiceExportTo[1]: "a" is there twice; remove one`},
		{"discoverySelectors: [{matchExpressions: [{key: a, operator: Gt, values: ['1']}]}]", `validate mesh configuration: discoverySelectors[0].matchExpressions[0].operator: "Gt" is not known; use In, NotIn, Exists or DoesNotExist`},
		{"discoverySelectors: [{}, {matchExpressions: [{key: a, operator: In}]}]", "validate mesh configuration: discoverySelectors[1].matchExpressions[0].values: is empty; In needs one at least"},
		{"serviceEntryVisibility: {policies: [{matchingRules: [{}]}]}", "validate mesh configuration: serviceEntryVisibility.policies[0].matchingRules[0]: is empty; give a namespaceSelector"},
		{"serviceEntryVisibility: {policies: [{matchingRules: [{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}]}]}", "validate mesh configuration: serviceEntryVisibility.policies[0].matchingRules[0].namespaceSelector.matchExpressions[0].values: is empty; In needs one at least"},
		{"serviceSettings: [{settings: {clusterLocal: true}}]", "validate mesh configuration: serviceSettings[0].hosts: is empty; name the hosts that the settings are for"},
		{"extensionProviders: [{prometheus: {}}]", "validate mesh configuration: extensionProviders[3].name: is empty; name the provider"},
		{"defaultConfig: {discoveryAddress: istiod}", `validate mesh configuration: defaultConfig.discoveryAddress: "istiod" has no port; use HOST:PORT`},
		{"defaultConfig: {discoveryAddress: 'istiod:x'}", `validate mesh configuration: defaultConfig.discoveryAddress: "istiod:x" has no port number after the colon; use HOST:PORT`},
		{"defaultConfig: {discoveryAddress: 'istiod:0'}", "validate mesh configuration: defaultConfig.discoveryAddress: 0 is not a port; use 1-65535"},
		{"defaultConfig: {drainDuration: 0s}", "validate mesh configuration: defaultConfig.drainDuration: 0s is too short; use at least 1s"},
		{"defaultConfig: {concurrency: -1}", "validate mesh configuration: defaultConfig.concurrency: -1 is negative; use 0 for all cores"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			_, err := ParseMesh(tt.text)
			require.EqualError(t, err, tt.message)
		})
	}
}

func TestParseNetworks(t *testing.T) {
	n, err := ParseNetworks(`
networks:
  net-b:
    endpoints:
    - fromRegistry: edge
    - fromCidr: 10.4.0.0/16
    gateways:
    - address: 203.0.113.61
      port: 443
    - address: gw.example
      port: 15443
    - registryServiceName: gw.istio-system.svc.cluster.local
      port: 15443
`)
	require.NoError(t, err)
	require.Len(t, n.Networks["net-b"].Gateways, 3)
	for _, empty := range []string{"", "networks: {}", "networks:"} {
		n, err := ParseNetworks(empty)
		require.NoError(t, err)
		require.Empty(t, n.Networks)
	}
}

func TestParseNetworksRefuses(t *testing.T) {
	tests := []struct{ text, message string }{
		{"networks: {net: {endpoints: [{fromCidr: 10.0.0.0/99}]}}", `validate mesh networks: networks[net].endpoints[0].fromCidr: "10.0.0.0/99" is not a CIDR; write it as in 10.4.0.0/16`},
		{"networks: {net: {endpoints: [{fromRegistry: ''}]}}", "validate mesh networks: networks[net].endpoints[0].fromRegistry: is empty; name the cluster"},
		{"networks: {net: {endpoints: [{}]}}", "validate mesh networks: networks[net].endpoints[0]: is empty; give fromRegistry or fromCidr"},
		{"networks: {net: {gateways: [{port: 1}]}}", "validate mesh networks: networks[net].gateways[0]: is empty; give address or registryServiceName"},
		{"networks: {net: {gateways: [{address: a_b, port: 1}]}}", `validate mesh networks: networks[net].gateways[0].address: "a_b" is not a host name: label "a_b" must be letters, digits and inner hyphens, at most 63`},
		{"networks: {net: {gateways: [{address: a}]}}", "validate mesh networks: networks[net].gateways[0].port: 0 is not a port; use 1-65535"},
		{"networks: {net: {gateways: [{registryServiceName: '*', port: 1}]}}", `validate mesh networks: networks[net].gateways[0].registryServiceName: "*" is not a host name: a wildcard may only stand at the start, as in *.example.com`},
		{"networks: {'a b': {}}", "validate mesh networks: networks[a b]: is not a network name; it must be a label value, at most 63 letters, digits and inner -_."},
		{"networks: {net: {endpoints: [{fromCidr: 10.0.0.0/8, fromRegistry: c}]}}", `parse mesh networks: networks[net].endpoints[0].fromRegistry: is set beside fromCidr; keep one`},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			_, err := ParseNetworks(tt.text)
			require.EqualError(t, err, tt.message)
		})
	}
}

func TestFromConfigMap(t *testing.T) {
	s, err := FromConfigMap(nil)
	require.NoError(t, err)
	require.True(t, proto.Equal(Defaults().Mesh, s.Mesh))
	require.True(t, proto.Equal(&meshconfig.MeshNetworks{}, s.Networks))
	_, err = FromConfigMap(map[string]string{"mesh": "rootNamespace: X"})
	require.ErrorContains(t, err, "key mesh: validate mesh configuration: rootNamespace")
	_, err = FromConfigMap(map[string]string{"meshNetworks": "networks: 7"})
	require.ErrorContains(t, err, "key meshNetworks: parse mesh networks: networks: want an object, got the number 7")
}

func FuzzParseMesh(f *testing.F) {
	f.Add("trustDomain: td\ndefaultConfig: {concurrency: 2}", "networks: {net: {gateways: [{address: gw.example, port: 1}]}}")
	f.Add("enableTracing: false\nextensionProviders: [{name: x, zipkin: {service: a, port: 1}}]", "networks:")
	f.Add("a: &a [*a]", "{")
	f.Fuzz(func(t *testing.T, m, n string) {
		s, err := FromConfigMap(map[string]string{"mesh": m, "meshNetworks": n})
		if err != nil {
			return
		}
		if s.Mesh.GetTrustDomain() == "" || s.Mesh.GetRootNamespace() == "" || s.Mesh.GetConnectTimeout() == nil && !bytes.Contains([]byte(m), []byte("onnect")) {
			t.Fatalf("accepted without what everything needs: %v", s.Mesh)
		}
	})
}
