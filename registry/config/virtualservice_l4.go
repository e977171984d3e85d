package config

import (
	networking "istio.io/api/networking/v1alpha3"
)

func validateTLSRoute(c *checker, r *networking.TLSRoute, hosts hostSet) {
	if len(r.GetMatch()) == 0 {
		c.at("match").failf("is empty; name at least one server name in sniHosts")
	}
	for i, m := range r.GetMatch() {
		at := c.index("match", i)
		if len(m.GetSniHosts()) == 0 {
			at.at("sniHosts").failf("is empty; name at least one server name")
		}
		for j, h := range m.GetSniHosts() {
			validateSNIHost(at.index("sniHosts", j), h, hosts)
		}
		validateL4Match(at, m.GetDestinationSubnets(), m.GetPort(), m.GetSourceLabels(), m.GetGateways())
	}
	validateL4Destinations(c.at("route"), r.GetRoute())
}

// validateSNIHost checks a server name, which must be one of the hosts.
func validateSNIHost(c *checker, h string, hosts hostSet) {
	if why := badHost(h, true); why != "" && (!hosts.forwarded || !isUpstreamSNI(h)) {
		if isAddress(h) {
			c.warnf("%q is an address; clients send names only", clip(h))
			return
		}
		c.host(h, true)
		return
	}
	if _, ok := hosts.around(h, -1); !ok {
		c.failf("%q is not within the hosts of the virtual service; add it there", clip(h))
	}
}

func validateTCPRoute(c *checker, r *networking.TCPRoute) {
	for i, m := range r.GetMatch() {
		validateL4Match(c.index("match", i), m.GetDestinationSubnets(), m.GetPort(), m.GetSourceLabels(), m.GetGateways())
	}
	validateL4Destinations(c.at("route"), r.GetRoute())
}

func validateL4Match(c *checker, subnets []string, port uint32, source map[string]string, gateways []string) {
	for i, s := range subnets {
		c.index("destinationSubnets", i).subnet(s)
	}
	if port != 0 {
		c.at("port").port(int64(port))
	}
	c.labels("sourceLabels", source)
	c.at("gateways").gatewayNames(gateways)
}

func validateL4Destinations(c *checker, list []*networking.RouteDestination) {
	if len(list) == 0 {
		c.failf("is empty; name at least one destination")
	}
	var total int64
	for i, d := range list {
		at := c.element(i)
		validateDestination(at.at("destination"), d.GetDestination(), true)
		at.at("weight").notNegative(int64(d.GetWeight()))
		total += int64(d.GetWeight())
	}
	c.someWeight(len(list), total)
}
