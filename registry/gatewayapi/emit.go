package gatewayapi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	// credentialScheme names a Secret of any namespace.
	credentialScheme = "kubernetes-gateway://"
	// rootsSuffix says that the roots are meant.
	rootsSuffix = "-cacert"
)

// finish makes the Istio objects of a Gateway and its status. Every listener is a
// Gateway of Istio's for each set of routers, every host of it that a route has a
// VirtualService.
func (t *translator) finish(g *gateway) {
	for _, l := range g.listeners {
		if !l.usable() || l.spec.Protocol == hboneProtocol {
			continue
		}
		t.finishListener(l)
		if len(l.names) == 0 {
			continue
		}
		for h := range l.hosts {
			t.finishHost(l, h)
		}
		t.finishStreams(l)
	}
	t.judge(g.object.Key, func() *Status { return &Status{Gateway: g.status()} })
}

// internalName names what is derived from a listener.
func (l *listener) internalName() string {
	return l.gateway.name.Name + "-" + internalSuffix + "-" + string(l.spec.Name)
}

// hostKey and streamsKey name the VirtualServices of a listener. An underscore is
// in no name of an object, so that no two are called the same.
func (l *listener) hostKey(host string) mesh.ObjectKey {
	if host == "" {
		host = "any_"
	}
	return rulesKey(l.gateway.name.Namespace, l.internalName()+"_"+strings.Replace(host, "*", "_", 1))
}

func (l *listener) streamsKey() mesh.ObjectKey {
	return rulesKey(l.gateway.name.Namespace, l.internalName()+"_streams_")
}

// finishListener makes the Gateways of a listener, for each set of routers one.
func (t *translator) finishListener(l *listener) {
	server := l.server()
	if server == nil {
		return
	}
	g := l.gateway
	for i, b := range g.bindings() {
		name := l.internalName()
		if i > 0 {
			name += fmt.Sprintf("_%d", i)
		}
		bound := &Binding{Namespace: b.namespace, Origin: g.object.Key, Untrusted: l.insecure}
		for _, n := range slices.Concat(l.secrets, []Name{l.rooted}) {
			if n != (Name{}) && n.Namespace != b.namespace {
				bound.Credentials = append(bound.Credentials, n)
			}
		}
		t.emit(&mesh.Object{
			Key:    mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: g.name.Namespace, Name: name},
			Origin: g.object.Origin, Created: g.object.Created, Value: bound,
			Spec: &networking.Gateway{Selector: b.labels, Servers: []*networking.Server{server}},
		})
		l.names = append(l.names, g.name.Namespace+"/"+name)
		if !slices.Contains(l.spaces, b.namespace) {
			l.spaces = append(l.spaces, b.namespace)
		}
	}
}

// server is the listener in the words of Istio's Gateway; nil if it has none.
func (l *listener) server() *networking.Server {
	out := &networking.Server{Hosts: []string{"*/" + cmp.Or(l.hostname, "*")},
		Port: &networking.Port{Number: uint32(l.spec.Port), Name: "default", Protocol: string(l.spec.Protocol)}}
	switch {
	case l.leadsToNetwork():
		out.Tls = &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_AUTO_PASSTHROUGH}
	case l.terminates():
		if len(l.secrets) == 0 {
			return nil
		}
		out.Tls = &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_SIMPLE}
		for _, n := range l.secrets {
			out.Tls.CredentialNames = append(out.Tls.CredentialNames, credentialScheme+n.String())
		}
		if len(out.Tls.CredentialNames) == 1 {
			out.Tls.CredentialName, out.Tls.CredentialNames = out.Tls.CredentialNames[0], nil
		}
		if l.roots != "" {
			out.Tls.Mode, out.Tls.CaCertCredentialName = networking.ServerTLSSettings_MUTUAL, l.roots
			if l.insecure {
				out.Tls.Mode = networking.ServerTLSSettings_OPTIONAL_MUTUAL
			}
		}
	case l.spec.Protocol == gatewayv1.TLSProtocolType:
		out.Tls = &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_PASSTHROUGH}
	}
	return out
}

// finishHost makes the VirtualService of a host.
func (t *translator) finishHost(l *listener, host string) {
	h := l.hosts[host]
	if len(h.rules) == 0 {
		return
	}
	t.derive(l.hostKey(host), &derivation{rules: h.rules, gateways: l.names, spaces: l.spaces}, func() *mesh.Object {
		vs := &networking.VirtualService{Hosts: []string{cmp.Or(host, "*")}, Gateways: l.names, ExportTo: l.spaces}
		var extra Rules
		vs.Http, extra = h.routes()
		return ruled(h, vs, extra)
	})
}

func rulesKey(namespace, name string) mesh.ObjectKey {
	return mesh.ObjectKey{Kind: mesh.KindVirtualService, Namespace: namespace, Name: name}
}

// ruled is the object of a VirtualService, as old as the oldest of its routes.
func ruled(h *hostRules, vs *networking.VirtualService, extra Rules) *mesh.Object {
	from := h.oldest()
	o := &mesh.Object{Origin: from.Origin, Created: from.Created, Spec: vs}
	if len(extra) > 0 {
		o.Value = extra
	}
	return o
}

// finishStreams makes the VirtualService for connections, if there is any route
// for them.
func (t *translator) finishStreams(l *listener) {
	if len(l.streams) == 0 {
		return
	}
	h := &hostRules{streams: inOrder(l.streams)}
	otherwise := cmp.Or(l.hostname, "*")
	sealed := l.spec.Protocol == gatewayv1.TLSProtocolType && !l.terminates()
	d := &derivation{streams: h.streams, gateways: l.names, spaces: l.spaces, otherwise: otherwise, sealed: sealed}
	t.derive(l.streamsKey(), d, func() *mesh.Object {
		vs := &networking.VirtualService{Gateways: l.names, ExportTo: l.spaces}
		for _, s := range h.streams {
			if !sealed {
				vs.Tcp = append(vs.Tcp, s.asTCP())
				continue
			}
			route := s.asTLS(otherwise)
			vs.Tls = append(vs.Tls, route)
			for _, n := range route.Match[0].SniHosts {
				if !slices.Contains(vs.Hosts, n) {
					vs.Hosts = append(vs.Hosts, n)
				}
			}
		}
		if len(vs.Hosts) == 0 {
			vs.Hosts = []string{otherwise}
		}
		return ruled(h, vs, nil)
	})
}

// meshKey says for whom routes with a Service as their parent are: those of the
// Service's own namespace for all, others for the proxies of their namespace.
type meshKey struct {
	namespace string
	service   Name
}

// object names the VirtualService.
func (k meshKey) object() mesh.ObjectKey {
	return rulesKey(k.namespace, k.service.Name+"-"+k.service.Namespace+"-"+internalSuffix+"-mesh")
}

// finishMesh makes the VirtualService of a Service within the mesh.
func (t *translator) finishMesh(k meshKey) {
	h := t.mesh[k]
	h.streams = inOrder(h.streams)
	t.derive(k.object(), &derivation{rules: h.rules, streams: h.streams, service: h.service}, func() *mesh.Object { return inMesh(k, h) })
}

// inMesh makes the VirtualService of a Service within the mesh; nil if it has no
// rule.
func inMesh(k meshKey, h *hostRules) *mesh.Object {
	vs := &networking.VirtualService{Hosts: []string{string(h.service.Key.Hostname)}, Gateways: []string{"mesh"}, ExportTo: []string{"*"}}
	if k.namespace != k.service.Namespace {
		vs.ExportTo = []string{"."}
	}
	var extra Rules
	vs.Http, extra = h.routes()
	for _, s := range h.streams {
		if s.rule.tls {
			vs.Tls = append(vs.Tls, s.asTLS(string(h.service.Key.Hostname)))
		} else {
			vs.Tcp = append(vs.Tcp, s.asTCP())
		}
	}
	if len(vs.Http)+len(vs.Tls)+len(vs.Tcp) == 0 {
		return nil
	}
	return ruled(h, vs, extra)
}
