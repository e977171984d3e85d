package xds

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Bounds of what a proxy may say about itself.
const (
	maxNodeID        = 1024
	maxNodeBytes     = 256 << 10
	maxMetadataDepth = 16
	maxMetadataItems = 8192
	maxLabels        = 512
	maxAddresses     = 64
	maxNodeString    = 4096
)

// nodeError names the field of a node that is not acceptable.
type nodeError struct{ field, reason string }

func (e *nodeError) Error() string { return "node." + e.field + ": " + e.reason }

func badNode(field, format string, args ...any) error {
	return &nodeError{field, fmt.Sprintf(format, args...)}
}

// ParseNode reads the node of a proxy's first request. primary stands in for a
// missing CLUSTER_ID. The error names the field at fault.
func ParseNode(n *corev3.Node, primary mesh.ClusterID) (*mesh.Proxy, error) {
	if n == nil {
		return nil, badNode("id", "missing: the first request of a stream must carry the node")
	}
	if size := proto.Size(n); size > maxNodeBytes {
		return nil, badNode("metadata", "node of %d bytes, at most %d are accepted", size, maxNodeBytes)
	}
	items := 0
	if err := checkStruct(n.Metadata, "metadata", 1, &items); err != nil {
		return nil, err
	}
	p := &mesh.Proxy{Cluster: primary}
	ip, err := parseID(n.Id, p)
	if err != nil {
		return nil, err
	}
	if err := readMetadata(n.Metadata, p); err != nil {
		return nil, err
	}
	if err := addresses(n.Metadata, ip, p); err != nil {
		return nil, err
	}
	if p.Namespace == "" {
		_, p.Namespace = cutLast(p.ID, '.')
	}
	if l := n.Locality; l != nil {
		p.Locality = mesh.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone}
	}
	return p, nil
}

// parseID reads TYPE~IP~POD.NAMESPACE~DOMAIN and returns the IP.
func parseID(id string, p *mesh.Proxy) (netip.Addr, error) {
	var ip netip.Addr
	switch {
	case id == "":
		return ip, badNode("id", "empty, want TYPE~IP~POD.NAMESPACE~DOMAIN")
	case len(id) > maxNodeID:
		return ip, badNode("id", "%d bytes, at most %d are accepted", len(id), maxNodeID)
	case strings.ContainsFunc(id, unicode.IsControl):
		return ip, badNode("id", "control character")
	}
	parts := strings.Split(id, "~")
	if len(parts) != 4 {
		return ip, badNode("id", "%d parts, want the 4 of TYPE~IP~POD.NAMESPACE~DOMAIN", len(parts))
	}
	switch p.Kind = mesh.ProxyKind(parts[0]); p.Kind {
	case mesh.ProxySidecar, mesh.ProxyRouter:
	default:
		return ip, badNode("id", "type %q, want sidecar or router", parts[0])
	}
	if parts[2] == "" {
		return ip, badNode("id", "third part is empty, want POD.NAMESPACE")
	}
	p.ID, p.DNSDomain = parts[2], parts[3]
	ip, _ = netip.ParseAddr(parts[1]) // INSTANCE_IPS may stand in
	return ip, nil
}

// addresses sets the proxy's addresses: INSTANCE_IPS, else the one in the ID.
func addresses(md *structpb.Struct, id netip.Addr, p *mesh.Proxy) error {
	list := strings.Split(md.GetFields()["INSTANCE_IPS"].GetStringValue(), ",")
	if len(list) > maxAddresses {
		return badNode("metadata.INSTANCE_IPS", "%d addresses, at most %d are accepted", len(list), maxAddresses)
	}
	for _, s := range list {
		if a, err := netip.ParseAddr(strings.TrimSpace(s)); err == nil {
			p.Addresses = append(p.Addresses, a.Unmap().WithZone(""))
		}
	}
	if len(p.Addresses) == 0 && id.IsValid() {
		p.Addresses = append(p.Addresses, id.Unmap().WithZone(""))
	}
	if len(p.Addresses) == 0 {
		return badNode("id", "second part is not an IP address, and metadata INSTANCE_IPS has none")
	}
	return nil
}

// checkStruct bounds depth and number of values.
func checkStruct(s *structpb.Struct, path string, depth int, items *int) error {
	if depth > maxMetadataDepth {
		return badNode("metadata", "nested deeper than %d", maxMetadataDepth)
	}
	for _, v := range s.GetFields() {
		if err := checkValue(v, path, depth, items); err != nil {
			return err
		}
	}
	return nil
}

func checkValue(v *structpb.Value, path string, depth int, items *int) error {
	if *items++; *items > maxMetadataItems {
		return badNode("metadata", "more than %d values", maxMetadataItems)
	}
	switch x := v.GetKind().(type) {
	case *structpb.Value_StructValue:
		return checkStruct(x.StructValue, path, depth+1, items)
	case *structpb.Value_ListValue:
		if depth+1 > maxMetadataDepth {
			return badNode("metadata", "nested deeper than %d", maxMetadataDepth)
		}
		for _, e := range x.ListValue.GetValues() {
			if err := checkValue(e, path, depth+1, items); err != nil {
				return err
			}
		}
	}
	return nil
}

// readKey reads a metadata key that the control plane knows, and reports
// whether it knows it.
func readKey(key string, v *structpb.Value, p *mesh.Proxy) (known bool, err error) {
	switch key {
	case "INSTANCE_IPS", "GENERATOR": // see addresses and dialect
	case "CLUSTER_ID":
		if id := v.GetStringValue(); id != "" {
			p.Cluster = mesh.ClusterID(id)
		}
		err = shortString(v)
	case "NETWORK":
		p.Network, err = mesh.NetworkID(v.GetStringValue()), shortString(v)
	case "REQUESTED_NETWORK_VIEW":
		for _, n := range stringList(v) {
			p.NetworkView = append(p.NetworkView, mesh.NetworkID(n))
		}
	case "NAMESPACE":
		p.Namespace, err = v.GetStringValue(), shortString(v)
	case "SERVICE_ACCOUNT":
		p.ServiceAccount, err = v.GetStringValue(), shortString(v)
	case "WORKLOAD_NAME":
		p.WorkloadName, err = v.GetStringValue(), shortString(v)
	case "NODE_NAME":
		p.NodeName, err = v.GetStringValue(), shortString(v)
	case "ISTIO_VERSION":
		p.IstioVersion, err = v.GetStringValue(), shortString(v)
	case "MESH_ID":
		p.MeshID, err = v.GetStringValue(), shortString(v)
	case "LABELS":
		p.Labels, err = stringMap(v)
	case "ANNOTATIONS":
		p.Annotations, err = stringMap(v)
	case "POD_PORTS":
		err = readPodPorts(p, v)
	case "INTERCEPTION_MODE":
		err = readInterception(p, v)
	case "DNS_CAPTURE":
		p.DNSCapture = v.GetBoolValue() || strings.EqualFold(v.GetStringValue(), "true") || v.GetStringValue() == "1"
	case "PROXY_CONFIG":
		p.ProxyConfig = v.GetStructValue().AsMap()
	default:
		return false, nil
	}
	return true, err
}

func readMetadata(md *structpb.Struct, p *mesh.Proxy) error {
	for key, v := range md.GetFields() {
		known, err := readKey(key, v, p)
		if err != nil {
			return badNode("metadata."+key, "%s", err)
		}
		if !known {
			if p.Metadata == nil {
				p.Metadata = map[string]any{}
			}
			p.Metadata[key] = v.AsInterface()
		}
	}
	switch {
	case md.GetFields()["GENERATOR"].GetStringValue() == "grpc":
		p.Dialect = mesh.DialectGRPC
	case p.IstioVersion == "":
		p.Dialect = mesh.DialectEnvoy
	default:
		p.Dialect = mesh.DialectIstio
	}
	return nil
}

func shortString(v *structpb.Value) error {
	if n := len(v.GetStringValue()); n > maxNodeString {
		return fmt.Errorf("%d bytes, at most %d are accepted", n, maxNodeString)
	}
	return nil
}

func stringMap(v *structpb.Value) (map[string]string, error) {
	in := v.GetStructValue().GetFields()
	if len(in) > maxLabels {
		return nil, fmt.Errorf("%d entries, at most %d are accepted", len(in), maxLabels)
	}
	out := make(map[string]string, len(in))
	for k, x := range in {
		out[k] = x.GetStringValue()
	}
	return out, nil
}

// stringList reads a list of strings, or one string with commas.
func stringList(v *structpb.Value) []string {
	var raw []string
	if l := v.GetListValue(); l != nil {
		for _, e := range l.Values {
			raw = append(raw, e.GetStringValue())
		}
	} else {
		raw = strings.Split(v.GetStringValue(), ",")
	}
	var out []string
	for _, s := range raw {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// readPodPorts reads the named ports of a pod: a JSON list in a string, as the
// downward API gives it, or the list itself.
func readPodPorts(p *mesh.Proxy, v *structpb.Value) error {
	raw := []byte(v.GetStringValue())
	if v.GetListValue() != nil {
		raw, _ = json.Marshal(v.AsInterface())
	}
	if len(raw) == 0 {
		return nil
	}
	var ports []struct {
		Name          string  `json:"name"`
		ContainerPort float64 `json:"containerPort"`
	}
	if err := json.Unmarshal(raw, &ports); err != nil {
		return fmt.Errorf("not a JSON list of ports: %w", err)
	}
	for _, x := range ports {
		if x.Name == "" || x.ContainerPort < 1 || x.ContainerPort > 65535 {
			continue
		}
		if p.ContainerPorts == nil {
			p.ContainerPorts = map[string]uint16{}
		}
		p.ContainerPorts[x.Name] = uint16(x.ContainerPort)
	}
	return nil
}

func readInterception(p *mesh.Proxy, v *structpb.Value) error {
	switch m := mesh.Interception(strings.ToUpper(v.GetStringValue())); m {
	case mesh.InterceptRedirect, mesh.InterceptTProxy, mesh.InterceptNone:
		p.Interception = m
	case "":
	default:
		return fmt.Errorf("%q, want REDIRECT, TPROXY or NONE", truncate(string(m), 64))
	}
	return nil
}

// cutLast cuts at the last separator.
func cutLast(s string, sep byte) (before, after string) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i+1:]
}
