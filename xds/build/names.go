package build

import (
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Names of the upstreams that exist once per proxy.
const (
	// UpstreamBlackHole drops what is sent to it.
	UpstreamBlackHole = "BlackHoleCluster"
	// UpstreamPassthrough dials the original destination of outbound traffic.
	UpstreamPassthrough = "PassthroughCluster"
	// UpstreamInboundPassthrough dials the original destination of inbound traffic.
	UpstreamInboundPassthrough = "InboundPassthroughCluster"
	// UpstreamAnyLookup dials the host that a request names, whatever it is.
	UpstreamAnyLookup = "AllowAnyDynamicDNSCluster"
)

// Direction says which way an upstream's traffic goes, seen from the proxy's
// own workload.
type Direction string

// Directions.
const (
	DirectionOutbound Direction = "outbound"
	DirectionInbound  Direction = "inbound"
)

// UpstreamID is what the name of an upstream says.
type UpstreamID struct {
	Direction Direction
	Port      uint16
	// Subset is "" for the whole service.
	Subset string
	// Host is "" for inbound upstreams.
	Host mesh.Hostname
	// SNI is set for names in the form that travels as server name: those of
	// SNI-DNAT upstreams.
	SNI bool
}

// String renders the name that the identifier was read from.
func (u UpstreamID) String() string {
	if u.SNI {
		return SNIName(u.Port, u.Subset, u.Host)
	}
	return UpstreamName(u.Direction, u.Port, u.Subset, u.Host)
}

// UpstreamName renders the name of an upstream, DIRECTION|PORT|SUBSET|HOST:
// "outbound|80||reviews.shop.svc.cluster.local", "inbound|8080||".
func UpstreamName(dir Direction, port uint16, subset string, host mesh.Hostname) string {
	return string(dir) + "|" + strconv.Itoa(int(port)) + "|" + subset + "|" + string(host)
}

// ParseUpstreamName reads a name in the form of [UpstreamName]. A name that
// [UpstreamName] would write differently (a port with leading zeros) is refused.
func ParseUpstreamName(name string) (UpstreamID, bool) {
	return parseName(name, "|")
}

// SNIName renders the server name under which a service port is asked for
// across an east-west gateway, and by which the gateway's SNI-DNAT upstream is
// called: "outbound_.80_._.reviews.shop.svc.cluster.local".
func SNIName(port uint16, subset string, host mesh.Hostname) string {
	return string(DirectionOutbound) + "_." + strconv.Itoa(int(port)) + "_." + subset + "_." + string(host)
}

// ParseSNIName reads a name in the form of [SNIName].
func ParseSNIName(name string) (UpstreamID, bool) {
	id, ok := parseName(name, "_.")
	id.SNI = true
	return id, ok && id.Direction == DirectionOutbound && id.Host != ""
}

// parseAnyName reads a name in either form.
func parseAnyName(name string) (UpstreamID, bool) {
	if id, ok := ParseUpstreamName(name); ok {
		return id, true
	}
	return ParseSNIName(name)
}

func parseName(name, sep string) (UpstreamID, bool) {
	var id UpstreamID
	dir, rest, ok := strings.Cut(name, sep)
	if !ok || dir != string(DirectionOutbound) && dir != string(DirectionInbound) {
		return id, false
	}
	port, rest, ok := strings.Cut(rest, sep)
	if !ok {
		return id, false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || len(port) > 1 && port[0] == '0' {
		return id, false
	}
	subset, host, ok := strings.Cut(rest, sep)
	if !ok {
		return id, false
	}
	return UpstreamID{Direction: Direction(dir), Port: uint16(number), Subset: subset, Host: mesh.Hostname(host)}, true
}
