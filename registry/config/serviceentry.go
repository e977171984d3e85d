package config

import (
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func serviceEntryKind() descriptor {
	kind, versions := networkingKind(mesh.KindServiceEntry, "serviceentries")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networking.ServiceEntry{} },
		typed:    typedAs(func(o *networkingv1.ServiceEntry) proto.Message { return &o.Spec }),
		validate: checks(validateServiceEntry),
	}
}

func validateServiceEntry(c *checker, s *networking.ServiceEntry) {
	c.workloads(s.GetWorkloadSelector())
	if s.GetWorkloadSelector() != nil && len(s.GetEndpoints()) > 0 {
		c.at("workloadSelector").failf("is set beside endpoints; keep one")
	}
	validateServiceHosts(c, s)
	for i, a := range s.GetAddresses() {
		at := c.index("addresses", i)
		at.subnet(a)
		if strings.Contains(a, "/") && resolves(s) {
			at.failf("%q is a CIDR, which resolution %s has no use for; use STATIC or NONE", clip(a), s.GetResolution())
		}
	}
	validateServicePorts(c, s)
	validateEndpoints(c, s)
	validateByRequest(c, s)
	c.at("exportTo").exportedTo(s.GetExportTo(), true)
}

// resolves reports whether proxies look up names.
func resolves(s *networking.ServiceEntry) bool {
	switch s.GetResolution() {
	case networking.ServiceEntry_NONE, networking.ServiceEntry_STATIC:
		return false
	}
	return true
}

func validateServiceHosts(c *checker, s *networking.ServiceEntry) {
	if len(s.GetHosts()) == 0 {
		c.at("hosts").failf("is empty; name at least one host")
	}
	for i, h := range s.GetHosts() {
		at := c.index("hosts", i)
		if h == "*" {
			at.failf(`"*" is everything; name a host, or a domain as in *.example.com`)
			continue
		}
		at.host(h, true)
		if strings.HasPrefix(h, "*") && !strings.HasPrefix(h, "*.") {
			at.warnf("%q has a wildcard for a part of a label; use one for the whole label, as in *.example.com", clip(h))
		}
	}
}

func validateServicePorts(c *checker, s *networking.ServiceEntry) {
	names, numbers := seen{}, seen{}
	mixed := false
	for i, p := range s.GetPorts() {
		at := c.index("ports", i)
		at.at("number").port(int64(p.GetNumber()))
		at.at("name").label(p.GetName(), "a port")
		at.at("protocol").protocol(p.GetProtocol(), true)
		if p.GetTargetPort() != 0 {
			at.at("targetPort").port(int64(p.GetTargetPort()))
		}
		if names.twice(p.GetName()) {
			at.at("name").failf("%q is used by an earlier port; give each its own name", clip(p.GetName()))
		}
		if numbers.twice(strconv.FormatUint(uint64(p.GetNumber()), 10)) {
			at.at("number").failf("%d is used by an earlier port; give each its own number", p.GetNumber())
		}
		if opaque := !speaksHTTP(p.GetProtocol()) && !speaksTLS(p.GetProtocol()); opaque && !mixed &&
			s.GetResolution() != networking.ServiceEntry_NONE && len(s.GetHosts()) > 1 {
			mixed = true
			at.at("protocol").failf("tells nothing of the host, and there are %d hosts; use HTTP or TLS, or one ServiceEntry for each host", len(s.GetHosts()))
		}
	}
}

// validateByRequest checks what proxies can look up by request: names within a
// wildcard, of traffic that says what host it is for.
func validateByRequest(c *checker, s *networking.ServiceEntry) {
	if s.GetResolution() != networking.ServiceEntry_DYNAMIC_DNS {
		return
	}
	for i, h := range s.GetHosts() {
		if h != "*" && !strings.HasPrefix(h, "*.") { // "*" is refused by itself
			c.index("hosts", i).failf("%q is not a wildcard as in *.example.com, which resolution DYNAMIC_DNS is for; use DNS", clip(h))
		}
	}
	telling := func(p *networking.ServicePort) bool { return speaksHTTP(p.GetProtocol()) || speaksTLS(p.GetProtocol()) }
	any := slices.ContainsFunc(s.GetPorts(), telling)
	for i, p := range s.GetPorts() {
		if telling(p) {
			continue
		}
		at := c.index("ports", i).at("protocol")
		complain := at.failf
		if any { // the others are served
			complain = at.warnf
		}
		complain("%q tells nothing of the host, which resolution DYNAMIC_DNS looks up: the port is left out; use HTTP or TLS", clip(p.GetProtocol()))
	}
	if len(s.GetEndpoints()) > 0 {
		c.at("endpoints").warnf("has no effect with resolution DYNAMIC_DNS")
	}
	if s.GetWorkloadSelector() != nil {
		c.at("workloadSelector").warnf("has no effect with resolution DYNAMIC_DNS")
	}
	if len(s.GetAddresses()) > 0 {
		c.at("addresses").warnf("has no effect with resolution DYNAMIC_DNS: an address tells nothing of the host")
	}
}

func validateEndpoints(c *checker, s *networking.ServiceEntry) {
	ports := seen{}
	for _, p := range s.GetPorts() {
		ports.twice(p.GetName())
	}
	switch r := s.GetResolution(); r {
	case networking.ServiceEntry_NONE:
		if len(s.GetEndpoints()) > 0 {
			c.at("endpoints").failf("is set, but resolution NONE sends to where the caller wanted; remove it or use STATIC")
		}
		if s.GetWorkloadSelector() != nil {
			c.at("workloadSelector").warnf("has no effect with resolution NONE; use STATIC")
		}
	case networking.ServiceEntry_STATIC:
		for i, e := range s.GetEndpoints() {
			validateWorkload(c.index("endpoints", i), e, ports, false)
		}
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		if len(s.GetEndpoints()) == 0 {
			for i, h := range s.GetHosts() {
				if strings.HasPrefix(h, "*") {
					c.index("hosts", i).failf("%q is a wildcard, which cannot be resolved; name a host, give endpoints or use resolution NONE", clip(h))
				}
			}
		}
		if r == networking.ServiceEntry_DNS_ROUND_ROBIN && len(s.GetEndpoints()) > 1 {
			c.at("endpoints").failf("has %d entries; resolution %s takes one", len(s.GetEndpoints()), r)
		}
		for i, e := range s.GetEndpoints() {
			at := c.index("endpoints", i)
			at.at("address").address(e.GetAddress())
			at.labels("labels", e.GetLabels())
			validateWorkloadPorts(at, e, ports)
		}
	}
}
