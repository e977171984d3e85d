package build

import (
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	lookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// lookUp makes an upstream dial the names that requests ask for. Unless told
// otherwise, servers are asked for by that name in TLS too, and must have it in
// their certificate. Envoy wants to be told where that is not so.
func (d *draft) lookUp(v View, name string) error {
	o := d.options().GetUpstreamHttpProtocolOptions() // without options Envoy would overrule the server name that a rule gives
	if o == nil && d.TransportSocket == nil {
		o = &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: true}
		d.options().UpstreamHttpProtocolOptions = o
	}
	config, err := toAny(&lookupv3.ClusterConfig{
		ClusterImplementationSpecifier: &lookupv3.ClusterConfig_DnsCacheConfig{DnsCacheConfig: lookupCache(v, name)},
		AllowInsecureClusterOptions:    !o.GetAutoSni() || !o.GetAutoSanValidation(),
	})
	if err != nil {
		return err
	}
	d.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{Name: lookupUpstreamType, TypedConfig: config}}
	d.LbPolicy, d.LbConfig = clusterv3.Cluster_CLUSTER_PROVIDED, nil
	return nil
}

// lookupUpstream finishes the upstream of a service whose names are looked up by
// request.
func lookupUpstream(in Inputs, v View, d *draft, x *upstreamRule) (*clusterv3.Cluster, error) {
	d.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{} // filled in at the end, when it is known who is accepted
	d.applyPolicy(in, x)
	if err := d.secureLookup(in, v, x); err != nil {
		return nil, err
	}
	if err := d.lookUp(v, string(x.service.Key.Hostname)); err != nil {
		return nil, err
	}
	if err := d.announce(x.policy.GetProxyProtocol()); err != nil {
		return nil, err
	}
	reportUnnamed(in, x.service)
	return d.finish(), nil
}

// secureLookup makes the upstream speak TLS as a rule says. Without a rule it
// speaks none: of servers that are found by name nothing is known.
func (d *draft) secureLookup(in Inputs, v View, x *upstreamRule) error {
	tls := x.policy.GetTls()
	if tls.GetMode() != networking.ClientTLSSettings_ISTIO_MUTUAL {
		return d.secureByRule(in, v, x, tls)
	}
	if err := checkServerName(x, tls.GetSni()); err != nil {
		return err
	}
	context := d.meshTLS(v.Dialect, x, tls.GetSni(), acceptNames(tls.GetSubjectAltNames()))
	d.followHost(tls)
	var err error
	d.TransportSocket, err = mtlsSocket(context)
	return err
}

// projectAnyLookup reduces a view for [UpstreamAnyLookup].
func projectAnyLookup(in Inputs, v View) View {
	if !looksUpAny(in, v) {
		return View{Kind: mesh.ProxyRouter} // which has none
	}
	p := View{Kind: v.Kind, Sidecar: policySidecar(in, v)}
	p.IPv4, p.IPv6 = families(v)
	return p
}

// anyLookup makes the upstream of requests for hosts that the mesh does not know,
// where MeshConfig.outboundTrafficPolicy has them looked up; it may have them
// sent by TLS.
func anyLookup(in Inputs, v View) (*clusterv3.Cluster, error) {
	if !looksUpAny(in, v) {
		return nil, nil
	}
	d := &draft{Cluster: newUpstream(in, UpstreamAnyLookup, UpstreamAnyLookup)}
	d.CircuitBreakers = noLimits()
	d.applyKeepalive(in.Catalog.Settings.Mesh.GetTcpKeepalive())
	d.common().IdleTimeout = duration(passthroughIdle)
	d.likeDownstream()
	if tls := in.Catalog.Settings.Mesh.GetOutboundTrafficPolicy().GetTls(); ownTLS(&networking.TrafficPolicy{Tls: tls}) {
		// As if a rule for these clients said so.
		x := &upstreamRule{policy: &networking.TrafficPolicy{Tls: tls},
			rule:   &destinationRule{selective: true, origin: &mesh.Object{Origin: mesh.ObjectRef{Kind: "MeshConfig", Name: "outboundTrafficPolicy"}}},
			served: served{service: &mesh.Service{Lead: &mesh.Definition{MeshExternal: true}}}}
		if err := d.secureByRule(in, v, x, tls); err != nil {
			return nil, err
		}
	}
	if err := d.lookUp(v, UpstreamAnyLookup); err != nil {
		return nil, err
	}
	return d.finish(), nil
}

// reportUnnamed reports the ports of a ServiceEntry that are left out because
// what is sent to them names no host.
func reportUnnamed(in Inputs, s *mesh.Service) {
	if in.Report == nil {
		return
	}
	o := in.Catalog.Object(mesh.ObjectKey{Kind: mesh.KindServiceEntry, Namespace: s.Key.Namespace, Name: s.Lead.Origin.Name})
	spec, _ := specOf[*networking.ServiceEntry](o)
	for i, p := range spec.GetPorts() {
		if known, ok := mesh.ParseProtocol(p.GetProtocol()); !ok || !known.NamesHost() {
			in.Report(o, "spec.ports["+strconv.Itoa(i)+"].protocol", strconv.Quote(p.GetProtocol())+
				" tells nothing of the host, which resolution DYNAMIC_DNS looks up: the port is left out; use HTTP or TLS")
			return // an object has one problem at a time
		}
	}
}
