package build

import (
	"net/netip"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Encoder is an optional side of a [Generator] that writes a resource's bytes
// without making the message first. The bytes decode to exactly what Build
// returns, and equal inputs give equal bytes.
type Encoder interface {
	// Encode appends the encoded message of the named resource to dst. It reports
	// false if the view has none of that name; dst is then returned as it was.
	// Errors are those of [Generator.Build].
	Encode(in Inputs, v View, name string, dst []byte) ([]byte, bool, error)
}

// Field numbers of the messages of an assignment, in the order in which they
// are nested.
const (
	assignmentName      = 1 // ClusterLoadAssignment
	assignmentLocality  = 2
	localityID          = 1 // LocalityLbEndpoints
	localityEndpoint    = 2
	localityWeight      = 3
	localityPriority    = 5
	localityRegion      = 1 // Locality
	localityZone        = 2
	localitySubZone     = 3
	lbEndpointEndpoint  = 1 // LbEndpoint
	lbEndpointHealth    = 2
	lbEndpointMetadata  = 3
	lbEndpointWeight    = 4
	endpointAddress     = 1 // Endpoint
	addressSocket       = 1 // Address
	addressPipe         = 2
	pipePath            = 1 // Pipe
	socketHost          = 2 // SocketAddress
	socketPort          = 3
	metadataFilter      = 1 // Metadata, a map
	structFields        = 1 // Struct, a map
	valueString         = 3 // Value
	mapKey              = 1
	mapValue            = 2
	wrapperValue        = 1 // UInt32Value
	maxVarint32         = 5
	reservedLengthBytes = 2
)

// Encode implements [Encoder].
func (Assignments) Encode(in Inputs, v View, name string, dst []byte) ([]byte, bool, error) {
	p := chosen(in, v, name)
	if p == nil {
		return dst, false, nil
	}
	var enc assignmentEncoder
	dst = appendText(dst, assignmentName, name)
	for i := range p.groups {
		dst = enc.locality(dst, p, &p.groups[i])
	}
	return dst, true, nil
}

// assignmentEncoder remembers the last endpoint's metadata: neighbours mostly
// belong to one deployment and have the same.
type assignmentEncoder struct {
	mtls     bool
	peer     peer
	metadata []byte
}

func (enc *assignmentEncoder) locality(dst []byte, p *plan, g *planned) []byte {
	dst, group := open(dst, assignmentLocality)
	dst, id := open(dst, localityID)
	dst = appendText(dst, localityRegion, g.locality.Region)
	dst = appendText(dst, localityZone, g.locality.Zone)
	dst = appendText(dst, localitySubZone, g.locality.SubZone)
	dst = shut(dst, id)
	for _, x := range g.picks {
		e := p.entry(x)
		dst = enc.entry(dst, &e)
	}
	dst = appendWeight(dst, localityWeight, g.weight())
	if g.priority != 0 {
		dst = append(dst, localityPriority<<3|byte(protowire.VarintType))
		dst = protowire.AppendVarint(dst, uint64(g.priority))
	}
	return shut(dst, group)
}

func (enc *assignmentEncoder) entry(dst []byte, e *Entry) []byte {
	var at int
	dst, at = open(dst, localityEndpoint)
	switch {
	case e.Gateway != nil:
		dst = appendSocket(dst, e.Gateway.Addr, e.Gateway.Port)
	case e.Endpoint.Addr.IsValid():
		dst = appendSocket(dst, e.Endpoint.Addr, e.Endpoint.Port)
	default:
		dst = appendPipe(dst, strings.TrimPrefix(e.Endpoint.Workload.Host, socketPrefix))
	}
	if h := e.health(); h != 0 {
		dst = append(dst, lbEndpointHealth<<3|byte(protowire.VarintType), byte(h))
	}
	if mtls, peer := e.mtls(), e.peer(); enc.metadata == nil || mtls != enc.mtls || peer != enc.peer {
		enc.mtls, enc.peer = mtls, peer
		enc.metadata = appendMetadata(enc.metadata[:0], mtls, peer.String())
	}
	dst = append(dst, enc.metadata...)
	dst = appendWeight(dst, lbEndpointWeight, e.Weight)
	return shut(dst, at)
}

// appendSocket writes an endpoint with an address. An IP's text is at most 45
// bytes, so that each length below fits one byte.
func appendSocket(dst []byte, a netip.Addr, port uint16) []byte {
	dst = append(dst, lbEndpointEndpoint<<3|bytesType, 0, endpointAddress<<3|bytesType, 0, addressSocket<<3|bytesType, 0, socketHost<<3|bytesType, 0)
	start := len(dst)
	dst = dialled(a).AppendTo(dst)
	dst[start-1] = byte(len(dst) - start)
	dst = append(dst, socketPort<<3|byte(protowire.VarintType)) // of a oneof: 0 is written too
	dst = protowire.AppendVarint(dst, uint64(port))
	for i := 3; i <= 7; i += 2 { // the three messages around the text end where we are
		dst[start-i] = byte(len(dst) - (start - i) - 1)
	}
	return dst
}

// appendPipe writes an endpoint that is a socket on the proxy's own machine.
func appendPipe(dst []byte, path string) []byte {
	dst, endpoint := open(dst, lbEndpointEndpoint)
	dst, address := open(dst, endpointAddress)
	dst, pipe := open(dst, addressPipe)
	dst = appendText(dst, pipePath, path)
	return shut(shut(shut(dst, pipe), address), endpoint)
}

// appendMetadata writes an endpoint's metadata, keys in order: the TLS mode,
// then the workload.
func appendMetadata(dst []byte, mtls bool, workload string) []byte {
	value := sizeField(len(workload))                            // Value{string_value}
	field := sizeField(len(metadataWorkload)) + sizeField(value) // Struct.FieldsEntry
	body := sizeField(field)                                     // Struct
	entry := sizeField(len(metadataIstio)) + sizeField(body)     // Metadata.FilterMetadataEntry
	total := sizeField(entry)
	if mtls {
		total += len(tlsModeEntry)
	}
	dst = appendHeader(dst, lbEndpointMetadata, total)
	if mtls {
		dst = append(dst, tlsModeEntry...)
	}
	dst = appendHeader(dst, metadataFilter, entry)
	dst = appendHeader(dst, mapKey, len(metadataIstio))
	dst = append(dst, metadataIstio...)
	dst = appendHeader(dst, mapValue, body)
	dst = appendHeader(dst, structFields, field)
	dst = appendHeader(dst, mapKey, len(metadataWorkload))
	dst = append(dst, metadataWorkload...)
	dst = appendHeader(dst, mapValue, value)
	dst = appendHeader(dst, valueString, len(workload))
	return append(dst, workload...)
}

// tlsModeEntry is the encoded entry {"envoy.transport_socket_match":
// {"tlsMode": "istio"}} of a metadata map.
const tlsModeEntry = "\x0a\x34" + // filter_metadata, 52 bytes
	"\x0a\x1c" + metadataSocketMatch + // key, 28 bytes
	"\x12\x14" + // value, a Struct of 20 bytes
	"\x0a\x12" + // fields, 18 bytes
	"\x0a\x07" + metadataTLSMode + // key, 7 bytes
	"\x12\x07" + // value, 7 bytes
	"\x1a\x05" + tlsModeIstio // string_value, 5 bytes

const bytesType = byte(protowire.BytesType)

// sizeField is the size of a length-delimited field with a field number below
// 16: tag, length and content.
func sizeField(content int) int { return 1 + protowire.SizeVarint(uint64(content)) + content }

func appendHeader(dst []byte, field, size int) []byte {
	dst = append(dst, byte(field)<<3|bytesType)
	return protowire.AppendVarint(dst, uint64(size))
}

func appendText[S ~string](dst []byte, field int, s S) []byte {
	if s == "" {
		return dst
	}
	return append(appendHeader(dst, field, len(s)), s...)
}

// appendWeight writes a UInt32Value. Weights are never 0.
func appendWeight(dst []byte, field int, w uint32) []byte {
	size := 1 + protowire.SizeVarint(uint64(w))
	dst = append(dst, byte(field)<<3|bytesType, byte(size), wrapperValue<<3|byte(protowire.VarintType))
	return protowire.AppendVarint(dst, uint64(w))
}

// open begins a nested message whose length is not known yet, with room for the
// length that most have; shut ends it, moving its content if the room is wrong.
func open(dst []byte, field int) ([]byte, int) {
	dst = append(dst, byte(field)<<3|bytesType, 0, 0)
	return dst, len(dst)
}

func shut(dst []byte, at int) []byte {
	n := len(dst) - at
	size := protowire.SizeVarint(uint64(n))
	switch {
	case size < reservedLengthBytes:
		copy(dst[at-1:], dst[at:])
		dst = dst[:len(dst)-1]
	case size > reservedLengthBytes:
		var room [maxVarint32]byte
		dst = append(dst, room[:size-reservedLengthBytes]...)
		copy(dst[at+size-reservedLengthBytes:], dst[at:at+n])
	}
	protowire.AppendVarint(dst[:at-reservedLengthBytes], uint64(n))
	return dst
}
