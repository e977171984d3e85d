package build

import (
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// FuzzVirtualService: whatever VirtualService is taken for valid comes to
// resources that proxies take, or to an error, and never panics.
func FuzzVirtualService(f *testing.F) {
	for _, spec := range []string{
		`{"hosts":["a"],"http":[{"match":[{"uri":{"prefix":"/x"},"headers":{"h":{"regex":"*"}},"withoutHeaders":{"n":{}}}],"route":[{"destination":{"host":"a","subset":"s"},"weight":3},{"destination":{"host":"b"},"weight":1}]}]}`,
		`{"hosts":["*"],"http":[{"redirect":{"uri":"/u","redirectCode":308,"derivePort":"FROM_REQUEST_PORT"}},{"directResponse":{"status":204}}]}`,
		`{"hosts":["a","10.1.2.3","*.b.c"],"http":[{"route":[{"destination":{"host":"d"},"headers":{"request":{"set":{"host":"x","y":"%REQ(z)%"}}}}],"retries":{"attempts":2,"retryOn":"5xx,503"},"timeout":"1s","fault":{"delay":{"fixedDelay":"1s","percentage":{"value":0.5}}},"corsPolicy":{"allowOrigins":[{"exact":"*"}]},"mirror":{"host":"a"},"rewrite":{"uriRegexRewrite":{"match":"(a)","rewrite":"\\1"}}}]}`,
		`{"hosts":["t"],"tcp":[{"match":[{"destinationSubnets":["10.0.0.0/8"],"port":81}],"route":[{"destination":{"host":"t"},"weight":1},{"destination":{"host":"a"},"weight":0}]}]}`,
		`{"hosts":["x.example.com","*.y.com"],"tls":[{"match":[{"sniHosts":["x.example.com","a.y.com"],"port":443}],"route":[{"destination":{"host":"t"}}]}]}`,
		`{"hosts":["a"],"http":[{"delegate":{"name":"d"},"match":[{"uri":{"exact":"/"}}]}]}`,
		`{"http":[{"match":[{"queryParams":{"q":{"exact":""}},"method":{"exact":"POST"}}],"route":[{"destination":{"host":"b","port":{"number":9}}}]}]}`,
	} {
		f.Add(spec)
	}
	kind, ok := config.Lookup("networking.istio.io/v1", string(mesh.KindVirtualService))
	require.True(f, ok)
	f.Fuzz(func(t *testing.T, spec string) {
		l := newLab(&meshconfig.MeshConfig{})
		l.services("c1", fuzzedServices()...)
		var list []registry.ObjectState
		for _, name := range []string{"one", "d"} { // an object may delegate to another like it
			o, err := config.Decode("c1", kind, []byte(`{"metadata":{"name":"`+name+`","namespace":"shop"},"spec":`+spec+`}`))
			if err != nil {
				return
			}
			list = append(list, registry.ObjectState{Key: o.Key, Object: o})
		}
		l.objects(list...)
		checkTaken(t, l)
	})
}
