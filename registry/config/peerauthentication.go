package config

import (
	"maps"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func peerAuthenticationKind() descriptor {
	kind, versions := securityKind(mesh.KindPeerAuthentication, "peerauthentications")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &security.PeerAuthentication{} },
		typed:    typedAs(func(o *securityv1.PeerAuthentication) proto.Message { return &o.Spec }),
		validate: checks(validatePeerAuthentication),
	}
}

func validatePeerAuthentication(c *checker, p *security.PeerAuthentication) {
	c.selector("selector", p.GetSelector())
	if len(p.GetPortLevelMtls()) > 0 && len(p.GetSelector().GetMatchLabels()) == 0 {
		c.at("portLevelMtls").failf("is set without a selector; ports differ from workload to workload, choose those it is for")
	}
	for _, port := range slices.Sorted(maps.Keys(p.GetPortLevelMtls())) {
		c.key("portLevelMtls", strconv.FormatUint(uint64(port), 10)).port(int64(port))
	}
}
