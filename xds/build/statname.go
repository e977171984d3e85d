package build

import (
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// MeshConfig's outboundClusterStatName and inboundClusterStatName say under what
// names proxies count upstreams and connections, as patterns over the parts of a
// service. The names of the upstreams themselves stay.

// counted is what the patterns have words for.
type counted struct {
	host mesh.Hostname
	// name and namespace are those of a Kubernetes Service; "" for what users
	// declare, which has its host name for a name.
	name, namespace string
	subset          string
	port            uint16
	portName        string
	target          uint16 // 0 on the way out
}

// under fills in a pattern.
func (c counted) under(pattern string) string {
	name, short := string(c.host), string(c.host)
	if c.name != "" {
		name, short = c.name, c.name+"."+c.namespace
	}
	return strings.NewReplacer(
		"%SERVICE%", short,
		"%SERVICE_NAME%", name,
		"%SERVICE_FQDN%", string(c.host),
		"%SERVICE_PORT%", strconv.Itoa(int(c.port)),
		"%SERVICE_PORT_NAME%", c.portName,
		"%TARGET_PORT%", strconv.Itoa(int(c.target)),
		"%SUBSET_NAME%", c.subset,
	).Replace(pattern)
}

// upstreamStat is the name under which an upstream of a service port, or of a
// subset of it, is counted: its own, which the caller has at hand, unless
// MeshConfig says otherwise.
func upstreamStat(in Inputs, at served, id UpstreamID, name string) string {
	pattern := in.Catalog.Settings.Mesh.GetOutboundClusterStatName()
	if pattern == "" {
		return name
	}
	c := counted{host: at.service.Key.Hostname, subset: id.Subset, port: id.Port, portName: at.port.Name}
	if !at.service.Lead.FromEntry() {
		c.name, c.namespace = at.service.Lead.Name, at.service.Key.Namespace
	}
	return c.under(pattern)
}

// inboundStat is the name under which a port of the workload is counted: that of
// the first service port that it serves.
func inboundStat(in Inputs, t InboundTarget) string {
	pattern := in.Catalog.Settings.Mesh.GetInboundClusterStatName()
	if pattern == "" {
		return UpstreamName(DirectionInbound, t.Target, "", "")
	}
	c := counted{host: mesh.Hostname(t.Hostname), port: t.Port, portName: t.PortName, target: t.Target}
	if strings.HasPrefix(t.Hostname, t.Name+"."+t.Namespace+".svc.") { // as only Services are called
		c.name, c.namespace = t.Name, t.Namespace
	}
	return c.under(pattern)
}
