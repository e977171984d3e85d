package build

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// patchUpstream applies a view's patches to an upstream; nil if one removes it.
func patchUpstream(in Inputs, v View, u *clusterv3.Cluster) *clusterv3.Cluster {
	p := newPatcher(in, v, sideOfUpstream(u.GetName()), "upstream "+u.GetName())
	hosts := inboundHosts(v, u.GetName())
	for _, x := range p.having(networking.EnvoyFilter_CLUSTER) {
		if !x.onUpstream(u.GetName(), hosts) {
			continue
		}
		switch x.op {
		case networking.EnvoyFilter_Patch_REMOVE:
			return nil
		case networking.EnvoyFilter_Patch_MERGE:
			u, _ = applied(p, x, u, func(next *clusterv3.Cluster) error { return mergeUpstream(next, x.value, x.replaces) })
		}
	}
	return u
}

// mergeUpstream merges a patch into an upstream. A socket goes into those that
// the upstream chooses from, where it has several.
func mergeUpstream(u *clusterv3.Cluster, value proto.Message, replace bool) error {
	name := u.GetName()
	src, ok := value.(*clusterv3.Cluster)
	if ok && src.GetTransportSocket() != nil && u.GetTransportSocket() == nil && len(u.GetTransportSocketMatches()) > 0 {
		src = proto.CloneOf(src)
		for _, m := range u.GetTransportSocketMatches() {
			if m.GetTransportSocket().GetName() != src.GetTransportSocket().GetName() {
				continue
			}
			if err := merge(m.GetTransportSocket(), src.GetTransportSocket(), replace); err != nil {
				return err
			}
		}
		src.TransportSocket = nil
		value = src
	}
	if err := merge(u, value, replace); err != nil {
		return err
	}
	u.Name = name // by which it is asked for
	return nil
}
