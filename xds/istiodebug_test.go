package xds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// istioctlNode is the node of an istioctl: a sidecar in namespace default by its
// ID and in istio-system by its metadata, without a cluster.
func istioctlNode() *corev3.Node {
	md, err := structpb.NewStruct(map[string]any{"GENERATOR": "event", "ISTIO_VERSION": "65536.65536.65536", "NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "default"})
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: "sidecar~192.0.2.2~test-1.default~default.svc.cluster.local", Metadata: md}
}

// istioctl is one question of an istioctl, whose stream stays open.
type istioctl struct{ *client }

func (w *world) istioctl(url string, names ...string) istioctl {
	q := istioctl{w.client(false, istioctlNode())}
	q.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: names,
		ResponseNonce: "2026-11-22 10:56:40.006501997 +0000 UTC m=+0.175338422"})
	synctest.Wait()
	return q
}

// answer returns the one response, nil if there is none.
func (q istioctl) answer() *discoveryv3.DiscoveryResponse {
	b := q.p.take()
	if b == nil {
		return nil
	}
	r := &discoveryv3.DiscoveryResponse{}
	require.NoError(q.t, proto.Unmarshal(b, r))
	require.Nil(q.t, q.p.take(), "one answer")
	return r
}

// ask asks, and hangs up.
func (w *world) ask(url string, names ...string) *discoveryv3.DiscoveryResponse {
	q := w.istioctl(url, names...)
	defer q.close()
	r := q.answer()
	require.NotNil(w.t, r)
	require.Equal(w.t, url, r.TypeUrl)
	require.NotEmpty(w.t, r.Nonce)
	require.NotEmpty(w.t, r.VersionInfo)
	return r
}

func (w *world) syncz() map[string]*statusv3.ClientConfig {
	out := map[string]*statusv3.ClientConfig{}
	for _, a := range w.ask(TypeDebugSyncz).Resources {
		require.Equal(w.t, "type.googleapis.com/envoy.service.status.v3.ClientConfig", a.TypeUrl)
		c := &statusv3.ClientConfig{}
		require.NoError(w.t, a.UnmarshalTo(c))
		out[c.Node.Id] = c
	}
	return out
}

// askable lets istioctl ask. who is a namespace, "*" for all, "" for nobody.
func askable(who *string) func(*Config) {
	return func(c *Config) {
		c.Build = BuildInfo{Version: "1.2.3", Revision: "abc", Status: "Clean"}
		c.Generators = append(c.Generators, build.NameTables{})
		c.DebugCaller = func(context.Context) (string, bool, error) {
			if *who == "" {
				return "", false, errors.New("no token")
			}
			return *who, *who == "*", nil
		}
		c.Debug = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/debug/list":
				writeJSON(w, r, []string{"list"})
			case "/debug/broken":
				panic("endpoint bug")
			case "/debug/huge":
				for b := make([]byte, 1<<20); ; {
					if _, err := w.Write(b); err != nil {
						return
					}
				}
			case "/debug/echo":
				_, _ = fmt.Fprint(w, r.Method, " ", r.RemoteAddr, " ", r.Host, " ", r.URL.RawQuery)
			default:
				http.NotFound(w, r)
			}
		})
	}
}

// askingWorld has a mesh, the server's own debug endpoints, and one who asks.
func askingWorld(t *testing.T) (w *world, who *string) {
	who = new(string)
	*who = "*"
	w = newWorld(t, func(c *Config) {
		askable(who)(c)
		inner := c.Debug
		c.Debug = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if h := w.srv.DebugHandlers(nil)[strings.TrimPrefix(r.URL.Path, "/debug/")]; h != nil {
				h(rw, r)
				return
			}
			inner.ServeHTTP(rw, r)
		})
	})
	w.put("east", "a", svc{pods: []string{"10.0.0.1/x"}})
	w.put("east", "store", svc{headless: true, pods: []string{"10.0.0.2/x"}})
	settle()
	return w, who
}

func TestIstioctlProxyStatus(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w, _ := askingWorld(t)
		defer w.stop()
		require.Empty(t, w.syncz(), "the one who asks is not a proxy")

		web := w.client(delta, labNode("10.9.9.9", "east", "net-east", "shop", nil))
		defer web.close()
		web.hold = true
		state := func() string {
			c := w.syncz()["pod-10.9.9.9.shop"]
			require.Equal(t, map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "shop", "ISTIO_VERSION": "1.30.0"}, c.Node.Metadata.AsMap())
			require.True(t, slices.IsSortedFunc(c.GenericXdsConfigs, func(a, b *statusv3.ClientConfig_GenericXdsConfig) int { return strings.Compare(a.TypeUrl, b.TypeUrl) }))
			var out []string
			for _, g := range c.GenericXdsConfigs {
				line := shortName(g.TypeUrl) + " " + g.ConfigStatus.String()
				require.Equal(t, g.ConfigStatus == statusv3.ConfigStatus_NOT_SENT, g.LastUpdated == nil, line)
				require.Equal(t, g.ConfigStatus == statusv3.ConfigStatus_ERROR, g.ErrorState != nil, line)
				if g.ErrorState != nil {
					require.NotNil(t, g.ErrorState.LastUpdateAttempt)
					line += ": " + g.ErrorState.Details
				}
				out = append(out, line)
			}
			return strings.Join(out, ", ")
		}

		web.subscribe(TypeCDS, true, nil, nil)
		settle(web)
		require.Equal(t, "cds STALE", state())
		w.put("east", "b", svc{pods: []string{"10.0.0.9/x"}})
		settle(web)
		web.of(TypeLDS).wild = true // listeners wait for the upstreams that wait for an answer
		if delta {
			web.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeLDS})
		} else {
			web.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: TypeLDS})
		}
		settle(web)
		require.Equal(t, "cds STALE, lds NOT_SENT", state())
		web.release()
		settle(web)
		require.Equal(t, "cds SYNCED, lds SYNCED", state())
		web.subscribe(build.TypeNameTable, true, nil, nil)
		synctest.Wait()
		require.Equal(t, "cds SYNCED, lds SYNCED, nds STALE", state())
		web.p.take()

		web.reject = func(string, map[string]string, []string) string { return "reason Envoy gave" }
		w.put("east", "a", svc{labels: map[string]string{"v": "2"}, pods: []string{"10.0.0.1/x"}})
		settle(web)
		require.Contains(t, state(), "cds ERROR: reason Envoy gave")
		rec := httptest.NewRecorder()
		w.srv.DebugHandlers(nil)["syncz"](rec, httptest.NewRequest(http.MethodGet, "/debug/syncz", nil))
		require.Contains(t, rec.Body.String(), `"cluster_sent"`)
		require.NotContains(t, rec.Body.String(), `"cluster_acked"`, "left out after a rejection")
		web.reject = nil
		w.put("east", "a", svc{labels: map[string]string{"v": "3"}, pods: []string{"10.0.0.1/x"}})
		settle(web)
		require.Contains(t, state(), "cds SYNCED")
	})
}

func TestIstioctlIsToldWhoAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		who := "*"
		w := newWorld(t, func(c *Config) {
			askable(&who)(c)
			c.Identifier = "istiod-0"
		})
		defer w.stop()
		var id struct {
			Component, ID string
			Info          map[string]string
		}
		require.NoError(t, json.Unmarshal([]byte(w.ask(TypeDebugSyncz).ControlPlane.GetIdentifier()), &id))
		require.Equal(t, "istiod", id.Component)
		require.Equal(t, "istiod-0", id.ID, "the pod's name: it has to differ between replicas")
		require.Equal(t, map[string]string{"version": "1.2.3", "revision": "abc", "golang_version": runtime.Version(), "status": "Clean", "tag": "1.2.3"}, id.Info)
	})
}

// TestIstioctlIsAnsweredOnce: an istioctl whose stream stays open hears nothing more.
func TestIstioctlIsAnsweredOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := askingWorld(t)
		defer w.stop()
		q := w.istioctl(TypeDebugSyncz)
		defer q.close()
		require.NotNil(t, q.answer())
		w.put("east", "a", svc{labels: map[string]string{"v": "2"}, pods: []string{"10.0.0.7/x"}})
		other := w.client(true, labNode("10.9.9.9", "east", "net-east", "shop", nil))
		defer other.close()
		other.subscribe(TypeCDS, true, nil, nil)
		settle(other)
		require.Nil(t, q.answer())
		require.Len(t, w.syncz(), 1, "nor is the other istioctl a proxy")
	})
}

func TestIstioctlConfigDump(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w, _ := askingWorld(t)
		defer w.stop()
		c := connected(t, w, delta)
		defer c.close()
		list := w.ask(TypeDebugConfigDump, "pod-10.9.9.9.shop").Resources
		var types []string
		for _, a := range list {
			types = append(types, strings.TrimPrefix(a.TypeUrl, "type.googleapis.com/envoy.admin.v3."))
		}
		require.Equal(t, []string{"BootstrapConfigDump", "ClustersConfigDump", "ListenersConfigDump", "ScopedRoutesConfigDump", "RoutesConfigDump",
			"SecretsConfigDump", "EcdsConfigDump"}, types)
		var clusters adminv3.ClustersConfigDump
		var listeners adminv3.ListenersConfigDump
		var routes adminv3.RoutesConfigDump
		for i, m := range map[int]proto.Message{1: &clusters, 2: &listeners, 4: &routes} {
			require.NoError(t, list[i].UnmarshalTo(m))
		}
		require.NotEmpty(t, clusters.VersionInfo)
		dumped := map[string]map[string]string{TypeCDS: {}, TypeLDS: {}, TypeRDS: {}}
		note := func(url string, b []byte) { dumped[url][nameOf(t, url, b)] = string(b) }
		for _, x := range clusters.DynamicActiveClusters {
			require.NotNil(t, x.LastUpdated)
			note(TypeCDS, x.Cluster.Value)
		}
		for _, x := range listeners.DynamicListeners {
			note(TypeLDS, x.ActiveState.Listener.Value)
		}
		for _, x := range routes.DynamicRouteConfigs {
			note(TypeRDS, x.RouteConfig.Value)
		}
		for url, have := range dumped {
			require.NotEmpty(t, have)
			require.Equal(t, c.types[url].have, have, "what was sent")
		}
		require.Empty(t, w.ask(TypeDebugConfigDump, "nobody.shop").Resources)
		require.Empty(t, w.ask(TypeDebugConfigDump).Resources)
	})
}

func (w *world) page(path string) string {
	list := w.ask(TypeDebug, path).Resources
	require.Len(w.t, list, 1)
	require.Equal(w.t, "istio.io/debug", list[0].TypeUrl)
	return string(list[0].Value)
}

func TestIstioctlReadsDebugPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := askingWorld(t)
		defer w.stop()
		c := connected(t, w, true)
		defer c.close()
		require.JSONEq(t, `["list"]`, w.page("list"))
		require.JSONEq(t, `["list"]`, w.page("/list"))
		require.Equal(t, "GET 127.0.0.1:0 localhost a=b", w.page("echo?a=b"))
		require.Contains(t, w.page("nonsense"), "404 page not found")
		require.Contains(t, w.page(""), "404 page not found")
		require.Contains(t, w.page("../metrics"), "404 page not found")
		require.Contains(t, w.page("x/../../debugger/list"), "404 page not found")
		require.Contains(t, w.page("%zz"), "400 not a path")
		require.Contains(t, w.page("huge"), "more than 64 MB")
		for _, path := range []string{"edsz", "ndsz", "config_dump"} {
			require.Contains(t, w.page(path), "You must provide a proxyID in the query string")
		}
		require.Contains(t, w.page("edsz?proxyID=pod-10.9.9.9.shop"), `"clusterName":"outbound|80||a.shop.svc.cluster.local"`)
		require.JSONEq(t, `{"table": {"store.shop.svc.cluster.local": {"ips": ["10.0.0.2"], "registry": "Kubernetes", "shortname": "store", "namespace": "shop"}}}`,
			w.page("ndsz?proxyID=pod-10.9.9.9.shop"))
		require.Contains(t, w.page("edsz?proxyID=nobody.shop"), "not connected")
		q := w.istioctl(TypeDebug, "broken")
		defer q.close()
		require.Nil(t, q.answer(), "a bug of an endpoint costs its answer only")
		require.Len(t, w.syncz(), 1)
	})
}

func TestIstioctlIsRefusedWithoutIdentity(t *testing.T) {
	for name, tune := range map[string]func(*Config){
		"nobody can prove anything": func(c *Config) { c.DebugCaller = nil },
		"no credential":             func(*Config) {},
		"no namespace": func(c *Config) {
			c.DebugCaller = func(context.Context) (string, bool, error) { return "", false, nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(c *Config) { askable(new(string))(c); tune(c) })
				defer w.stop()
				for _, url := range []string{TypeDebug, TypeDebugSyncz, TypeDebugConfigDump} {
					q := w.istioctl(url, "list")
					require.Nil(t, q.answer())
					err := <-q.done
					require.Equal(t, codes.Unauthenticated, status.Code(err))
					require.Contains(t, status.Convert(err).Message(), "authentication required")
				}
			})
		})
	}
	t.Run("the hook decides", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(c *Config) {
				c.DebugCaller = func(context.Context) (string, bool, error) {
					return "", false, status.Error(codes.PermissionDenied, "not you")
				}
			})
			defer w.stop()
			q := w.istioctl(TypeDebugSyncz)
			require.Equal(t, codes.PermissionDenied, status.Code(<-q.done))
		})
	})
}

// TestIstioctlOutsideTheSystem: callers of other namespaces see their own only.
func TestIstioctlOutsideTheSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, who := askingWorld(t)
		defer w.stop()
		for _, ns := range []string{"shop", "bank"} {
			c := w.client(true, labNode("10.9.9.9", "east", "net-east", ns, nil))
			defer c.close()
			c.subscribe(TypeCDS, true, nil, nil)
			settle(c)
		}
		const mine, theirs = "pod-10.9.9.9.shop", "pod-10.9.9.9.bank"
		require.Len(t, w.syncz(), 2)
		*who = "shop"
		require.Len(t, w.syncz(), 1)
		require.Contains(t, w.syncz(), mine)
		require.NotEmpty(t, w.ask(TypeDebugConfigDump, mine).Resources)
		require.Empty(t, w.ask(TypeDebugConfigDump, theirs).Resources)
		for _, path := range []string{"edsz", "ndsz", "config_dump"} {
			require.NotContains(t, w.page(path+"?proxyID="+mine), "not connected")
			require.Contains(t, w.page(path+"?proxyID="+theirs), "not connected")
			require.Contains(t, w.page(path+"?proxy="+theirs), "not connected")
			require.Contains(t, w.page(path), "You must provide a proxyID")
		}
		require.Contains(t, w.page("syncz"), mine)
		require.NotContains(t, w.page("syncz?namespace=bank&namespace="), theirs)
		for _, path := range []string{"adsz", "connections", "proxies", "list", "pprof/heap", "syncz/"} {
			require.Contains(t, w.page(path), "403 callers outside the system namespaces", path)
		}
	})
}

// TestIstioctlSeesOtherTypes: types that are not shared have a state, too.
func TestIstioctlSeesOtherTypes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const secrets = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
		who := "*"
		w := newWorld(t, func(c *Config) {
			askable(&who)(c)
			c.PerProxy = map[string]PerProxy{secrets: echo{}, "withheld": withheld{}}
		})
		defer w.stop()
		c := w.client(false, labNode("10.9.9.9", "east", "net-east", "shop", nil))
		defer c.close()
		state := func(url string) *statusv3.ClientConfig_GenericXdsConfig {
			for _, g := range w.syncz()["pod-10.9.9.9.shop"].GetGenericXdsConfigs() {
				if g.TypeUrl == url {
					return g
				}
			}
			return nil
		}
		c.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: secrets, ResourceNames: []string{"kubernetes://a"}})
		c.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: "withheld"})
		synctest.Wait()
		require.Equal(t, statusv3.ConfigStatus_STALE, state(secrets).ConfigStatus)
		require.Equal(t, statusv3.ConfigStatus_NOT_SENT, state("withheld").ConfigStatus)
		r := istioctl{c}.answer()
		a := &discoveryv3.DiscoveryRequest{TypeUrl: secrets, ResourceNames: []string{"kubernetes://a"}, ResponseNonce: r.Nonce}
		c.sendSotW(a)
		synctest.Wait()
		require.Equal(t, statusv3.ConfigStatus_SYNCED, state(secrets).ConfigStatus)
	})
}

type withheld struct{}

func (withheld) Respond(context.Context, *mesh.Proxy, string, []string) ([]NamedAny, error) {
	return nil, ErrWithheld
}
