package build

import (
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Extension providers are what MeshConfig names for logs, spans and metrics.
// Those that are services of the mesh are reached by the upstreams that the
// proxy has anyway. One whose service the proxy does not know is left out:
// proxies refuse a listener that names an upstream which is not there.

// provider finds an extension provider by name; nil if MeshConfig has none.
func provider(in Inputs, name string) *meshconfig.MeshConfig_ExtensionProvider {
	for _, p := range in.Catalog.Settings.Mesh.GetExtensionProviders() {
		if p.GetName() == name {
			return p
		}
	}
	return nil
}

// providerService is where the provider's server is: a host or NAMESPACE/HOST,
// and its port; "" if it has none.
func providerService(p *meshconfig.MeshConfig_ExtensionProvider) (service string, port uint32) {
	var s interface {
		GetService() string
		GetPort() uint32
	}
	switch x := p.GetProvider().(type) {
	case *meshconfig.MeshConfig_ExtensionProvider_Zipkin:
		s = x.Zipkin
	case *meshconfig.MeshConfig_ExtensionProvider_Lightstep: //nolint:staticcheck // still read
		s = x.Lightstep //nolint:staticcheck // see above
	case *meshconfig.MeshConfig_ExtensionProvider_Datadog:
		s = x.Datadog
	case *meshconfig.MeshConfig_ExtensionProvider_Skywalking:
		s = x.Skywalking
	case *meshconfig.MeshConfig_ExtensionProvider_Opentelemetry:
		s = x.Opentelemetry
	case *meshconfig.MeshConfig_ExtensionProvider_EnvoyHttpAls:
		s = x.EnvoyHttpAls
	case *meshconfig.MeshConfig_ExtensionProvider_EnvoyTcpAls:
		s = x.EnvoyTcpAls
	case *meshconfig.MeshConfig_ExtensionProvider_EnvoyOtelAls:
		s = x.EnvoyOtelAls
	default:
		return "", 0
	}
	return s.GetService(), s.GetPort()
}

// providerUpstream finds the upstream of a provider's server, and the host name
// by which the server knows itself; false if the view's proxies have none.
func providerUpstream(in Inputs, v View, p *meshconfig.MeshConfig_ExtensionProvider) (upstream string, host mesh.Hostname, ok bool) {
	service, number := providerService(p)
	if service == "" || number == 0 || number > 65535 {
		return "", "", false
	}
	ns, name, qualified := strings.Cut(service, "/")
	if !qualified {
		ns, name = "", service
	}
	host = mesh.Hostname(name)
	for _, s := range in.Catalog.Host(host) {
		if qualified && s.Key.Namespace != ns || !sees(in, v, s) {
			continue
		}
		if _, has := serves(in, v, s, uint16(number)); has {
			return UpstreamName(DirectionOutbound, uint16(number), "", host), host, true
		}
	}
	return "", "", false
}

// providersInForce lists the names of all providers that MeshConfig's defaults or
// a Telemetry of the view name.
func providersInForce(in Inputs, v View) []string {
	d := in.Catalog.Settings.Mesh.GetDefaultProviders()
	out := slices.Concat(d.GetAccessLogging(), d.GetTracing())
	add := func(refs []*telemetry.ProviderRef) {
		out = append(out, providerNames(refs)...)
	}
	for _, t := range telemetries(in, v) {
		for _, l := range t.GetAccessLogging() {
			add(l.GetProviders())
		}
		for _, x := range t.GetTracing() {
			add(x.GetProviders())
		}
	}
	return out
}

// needsProviders reports whether anything that the view's proxies send their logs
// or spans to is a service of the mesh.
func needsProviders(in Inputs, v View) bool {
	if !slices.ContainsFunc(in.Catalog.Settings.Mesh.GetExtensionProviders(), func(p *meshconfig.MeshConfig_ExtensionProvider) bool {
		service, _ := providerService(p)
		return service != ""
	}) {
		return false
	}
	return slices.ContainsFunc(providersInForce(in, v), func(name string) bool {
		service, _ := providerService(provider(in, name))
		return service != ""
	})
}

// providersChanged reports whether a change is about a host that some provider's
// server has.
func providersChanged(in Inputs, c *registry.Change) bool {
	for _, p := range in.Catalog.Settings.Mesh.GetExtensionProviders() {
		service, _ := providerService(p)
		if _, name, qualified := strings.Cut(service, "/"); qualified {
			service = name
		}
		if service == "" {
			continue
		}
		for k, s := range c.Services {
			if string(k.Hostname) == service && s.Aspects.Has(registry.AspectDefinition) {
				return true
			}
		}
	}
	return false
}
