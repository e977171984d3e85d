package gatewayapi

import (
	"cmp"
	"fmt"
	"maps"
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
		names, spaces := t.finishListener(l)
		if len(names) == 0 {
			continue
		}
		for _, h := range slices.Sorted(maps.Keys(l.hosts)) {
			t.finishHost(l, h, names, spaces)
		}
		t.finishStreams(l, names, spaces)
	}
	t.out.Statuses[g.object.Key] = &Status{Gateway: g.status()}
}

// internalName names what is derived from a listener.
func (l *listener) internalName() string {
	return l.gateway.name.Name + "-" + internalSuffix + "-" + string(l.spec.Name)
}

// finishListener makes the Gateways of a listener; it returns their names, and
// the namespaces of their routers.
func (t *translator) finishListener(l *listener) (names, spaces []string) {
	server := l.server()
	if server == nil {
		return nil, nil
	}
	g := l.gateway
	for i, b := range g.bindings() {
		name := l.internalName()
		if i > 0 {
			name += fmt.Sprintf("-%d", i)
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
		names = append(names, g.name.Namespace+"/"+name)
		if !slices.Contains(spaces, b.namespace) {
			spaces = append(spaces, b.namespace)
		}
	}
	return names, spaces
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
func (t *translator) finishHost(l *listener, host string, gateways, spaces []string) {
	h := l.hosts[host]
	if len(h.rules) == 0 {
		return
	}
	vs := &networking.VirtualService{Hosts: []string{cmp.Or(host, "*")}, Gateways: gateways, ExportTo: spaces}
	var extra Rules
	vs.Http, extra = h.routes()
	t.emitRules(l.gateway.name.Namespace, l.internalName()+"-"+hostLabel(host), h.oldest(), vs, extra)
}

// hostLabel is a host as a part of a name.
func hostLabel(h string) string {
	if h == "" {
		return "any"
	}
	return strings.Replace(h, "*", "wildcard", 1)
}

func (t *translator) emitRules(namespace, name string, from *mesh.Object, vs *networking.VirtualService, extra Rules) {
	o := &mesh.Object{Key: mesh.ObjectKey{Kind: mesh.KindVirtualService, Namespace: namespace, Name: name},
		Origin: from.Origin, Created: from.Created, Spec: vs}
	if len(extra) > 0 {
		o.Value = extra
	}
	t.emit(o)
}

// finishStreams makes the VirtualService for connections, if there is any route
// for them.
func (t *translator) finishStreams(l *listener, gateways, spaces []string) {
	if len(l.streams) == 0 {
		return
	}
	h := hostRules{streams: l.streams}
	vs := &networking.VirtualService{Gateways: gateways, ExportTo: spaces}
	for _, s := range l.streams {
		if l.spec.Protocol == gatewayv1.TLSProtocolType && !l.terminates() {
			route := s.asTLS(cmp.Or(l.hostname, "*"))
			vs.Tls = append(vs.Tls, route)
			for _, n := range route.Match[0].SniHosts {
				if !slices.Contains(vs.Hosts, n) {
					vs.Hosts = append(vs.Hosts, n)
				}
			}
		} else {
			vs.Tcp = append(vs.Tcp, s.asTCP())
		}
	}
	if len(vs.Hosts) == 0 {
		vs.Hosts = []string{cmp.Or(l.hostname, "*")}
	}
	t.emitRules(l.gateway.name.Namespace, l.internalName()+"-streams", h.oldest(), vs, nil)
}

// meshKey says for whom routes with a Service as their parent are: those of the
// Service's own namespace for all, others for the proxies of their namespace.
type meshKey struct {
	namespace string
	service   Name
}

// finishMesh makes the VirtualServices of Services within the mesh.
func (t *translator) finishMesh() {
	keys := slices.SortedFunc(maps.Keys(t.mesh), func(a, b meshKey) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), compareNames(a.service, b.service))
	})
	for _, k := range keys {
		h := t.mesh[k]
		vs := &networking.VirtualService{Hosts: []string{string(h.service.Key.Hostname)}, Gateways: []string{"mesh"}, ExportTo: []string{"*"}}
		if k.namespace != k.service.Namespace {
			vs.ExportTo = []string{"."}
		}
		var extra Rules
		vs.Http, extra = h.routes()
		for _, s := range h.streams {
			if s.tls {
				vs.Tls = append(vs.Tls, s.asTLS(string(h.service.Key.Hostname)))
			} else {
				vs.Tcp = append(vs.Tcp, s.asTCP())
			}
		}
		if len(vs.Http)+len(vs.Tls)+len(vs.Tcp) == 0 {
			continue
		}
		t.emitRules(k.namespace, k.service.Name+"-"+k.service.Namespace+"-"+internalSuffix+"-mesh", h.oldest(), vs, extra)
	}
}
