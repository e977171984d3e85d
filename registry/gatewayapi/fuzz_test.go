package gatewayapi_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// FuzzTranslate: whatever objects say, what they are translated into is what
// Istio's own validation takes.
func FuzzTranslate(f *testing.F) {
	f.Add(readFile(f, "testdata/status.yaml"))
	f.Add(readFile(f, "../../xds/build/testdata/gatewayapi-routes/clusters/main.yaml"))
	f.Add(readFile(f, "../../xds/build/testdata/gatewayapi-mesh/clusters/main.yaml"))
	f.Fuzz(func(t *testing.T, text string) {
		x := newFixture()
		x.read(t, readFile(t, "testdata/services.yaml"))
		for doc := range strings.SplitSeq(text, "\n---\n") {
			raw, err := yaml.YAMLToJSON([]byte(doc))
			if err != nil {
				continue
			}
			var head struct{ APIVersion, Kind string }
			if json.Unmarshal(raw, &head) != nil {
				continue
			}
			k, ok := config.Lookup(head.APIVersion, head.Kind)
			if !ok || len(config.GatewayVersions(k.Kind)) == 0 {
				continue
			}
			if o, err := config.Decode("main", k, raw); err == nil {
				x.add(o)
			}
		}
		in := x.input()
		in.Credential = nil
		for _, o := range gatewayapi.Translate(in).Objects {
			spec, err := protojson.Marshal(o.Spec)
			require.NoError(t, err)
			k, ok := config.Lookup("networking.istio.io/v1", string(o.Key.Kind))
			require.True(t, ok)
			doc, err := json.Marshal(map[string]any{"metadata": map[string]any{"name": "x", "namespace": o.Key.Namespace}, "spec": json.RawMessage(spec)})
			require.NoError(t, err)
			_, err = config.Decode("main", k, doc)
			require.NoError(t, err, "%v", o.Key)
		}
	})
}
