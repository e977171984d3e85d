package build

import (
	"encoding/json"
	"strconv"
	"time"
	"unique"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Tuning is what a proxy's own settings say of how it speaks HTTP and listens,
// the zero value if they say nothing. It is comparable. The sections of its
// ProxyConfig are in force as it sends them: a proxy that sends any does not
// look at MeshConfig's defaults, which were merged in when it was injected; one
// that sends none has the defaults.
type Tuning struct {
	// sections is a ProxyConfig with nothing but what listeners read of it.
	sections unique.Handle[string]
	routes   routeTuning
	dial     dialTuning
	// idle ends connections on which nothing happens; it says nothing unless idles.
	idle  time.Duration
	idles bool
	// http10: clients may speak HTTP/1.0.
	http10 bool
	// httpProxy is the port on which the proxy is an HTTP proxy to its workload; 0
	// for none.
	httpProxy uint16
	// unprivileged: the proxy cannot bind ports below 1024.
	unprivileged bool
	// balancedIn and balancedOut: the connections of listeners on the workload's
	// side, and on that of its clients, are spread evenly over the proxy's threads.
	balancedIn, balancedOut bool
}

// routeTuning is what of a proxy's own settings routes depend on.
type routeTuning struct {
	// uncounted: requests do not tell how often they were tried.
	uncounted bool
	// forwardedHost: requests whose host is rewritten tell the one they came with.
	forwardedHost bool
}

// dialTuning is what of a proxy's own settings upstreams depend on.
type dialTuning struct {
	// buffer bounds what is held of a connection, in bytes; it says nothing unless
	// buffers.
	buffer  uint32
	buffers bool
	// keepCase: the names of HTTP/1 headers keep the case they came in.
	keepCase bool
}

// firstUnprivileged is the first port that a process without privileges may bind.
const firstUnprivileged = 1024

// deriveTuning reads a proxy's own settings.
func deriveTuning(in Inputs, p *mesh.Proxy) Tuning {
	if p.Dialect == mesh.DialectGRPC {
		return Tuning{} // it has none of what they are about
	}
	c := tunedSections(in, p)
	t := Tuning{
		sections:     internSections(c),
		routes:       routeTuning{c.GetProxyHeaders().GetAttemptCount().GetDisabled().GetValue(), c.GetProxyHeaders().GetXForwardedHost().GetEnabled().GetValue()},
		dial:         dialTuning{keepCase: c.GetProxyHeaders().GetPreserveHttp1HeaderCase().GetValue()},
		http10:       metadataScalar(p.Metadata, "HTTP10") == "1",
		unprivileged: metadataTruth(p.Metadata, "UNPRIVILEGED_POD"),
		balancedIn:   metadataTruth(p.Metadata, "INBOUND_LISTENER_EXACT_BALANCE"),
		balancedOut:  metadataTruth(p.Metadata, "OUTBOUND_LISTENER_EXACT_BALANCE"),
	}
	if n := c.GetConnectionSettings().GetClusterPerConnectionBufferLimitBytes(); n != nil && n.GetValue() >= 0 {
		t.dial.buffer, t.dial.buffers = uint32(n.GetValue()), true
	}
	if d, err := time.ParseDuration(metadataScalar(p.Metadata, "IDLE_TIMEOUT")); err == nil && d >= 0 {
		t.idle, t.idles = d, true
	}
	return t
}

// tunedSections picks the sections of a proxy's ProxyConfig that count, with the
// defaults of its connection profile filled in.
func tunedSections(in Inputs, p *mesh.Proxy) *meshconfig.ProxyConfig {
	defaults := in.Catalog.Settings.Mesh.GetDefaultConfig()
	c := defaults
	if p.ProxyConfig != nil {
		c = readProxyConfig(p.ProxyConfig)
	}
	out := &meshconfig.ProxyConfig{ProxyHeaders: c.GetProxyHeaders(), ConnectionSettings: c.GetConnectionSettings()}
	if out.ConnectionSettings == nil { // younger than the agents that may be about
		out.ConnectionSettings = defaults.GetConnectionSettings()
	}
	if p.Kind == mesh.ProxyRouter {
		out.GatewayTopology = c.GetGatewayTopology()
		out.ConnectionSettings = atEdgeProfile(out.ConnectionSettings)
	}
	return out
}

// internSections keeps what listeners read of the sections.
func internSections(c *meshconfig.ProxyConfig) (none unique.Handle[string]) {
	b, err := deterministic().Marshal(c)
	if err != nil || len(b) == 0 {
		return none
	}
	return unique.Make(string(b))
}

// readProxyConfig reads the sections that count of what an agent sends. One that
// is not understood is as if it were not there.
func readProxyConfig(sent map[string]any) *meshconfig.ProxyConfig {
	out := &meshconfig.ProxyConfig{}
	for _, name := range []string{"gatewayTopology", "proxyHeaders", "connectionSettings"} {
		section, ok := sent[name]
		if !ok {
			continue
		}
		text, err := json.Marshal(map[string]any{name: section})
		one := &meshconfig.ProxyConfig{}
		if err != nil || (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, one) != nil {
			continue
		}
		switch name {
		case "gatewayTopology":
			out.GatewayTopology = one.GatewayTopology
		case "proxyHeaders":
			out.ProxyHeaders = one.ProxyHeaders
		default:
			out.ConnectionSettings = one.ConnectionSettings
		}
	}
	return out
}

// config returns the sections of the ProxyConfig that are in force; nil, which
// says nothing, for none.
func (t Tuning) config() *meshconfig.ProxyConfig {
	if t.sections == (unique.Handle[string]{}) {
		return nil
	}
	out := &meshconfig.ProxyConfig{}
	if err := proto.Unmarshal([]byte(t.sections.Value()), out); err != nil {
		panic(err) // only tunedSections makes them
	}
	return out
}

// listening keeps what listeners depend on.
func (t Tuning) listening() Tuning {
	t.routes, t.dial = routeTuning{}, dialTuning{}
	return t
}

// binding keeps what it depends on which listeners there are.
func (t Tuning) binding() Tuning {
	return Tuning{unprivileged: t.unprivileged, httpProxy: t.httpProxy}
}

// dialling keeps what upstreams depend on, routing what routes do.
func (t Tuning) dialling() Tuning { return Tuning{dial: t.dial} }
func (t Tuning) routing() Tuning  { return Tuning{routes: t.routes} }

// binds reports whether the proxy is able to bind a port.
func (t Tuning) binds(port uint16) bool { return !t.unprivileged || port >= firstUnprivileged }

// metadataScalar reads metadata that an agent sends as text, a number or a truth
// value; "" for anything else.
func metadataScalar(m map[string]any, key string) string {
	switch x := m[key].(type) {
	case string:
		return x
	case json.Number:
		return x.String()
	case float64:
		return strconv.FormatFloat(x, 'f', -1, 64)
	case bool:
		return strconv.FormatBool(x)
	}
	return ""
}

func metadataTruth(m map[string]any, key string) bool {
	truth, err := strconv.ParseBool(metadataScalar(m, key))
	return err == nil && truth
}
