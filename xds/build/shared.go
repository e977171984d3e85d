package build

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// typePrefix is what type URLs start with.
const typePrefix = "type.googleapis.com/"

// deterministic makes encodings of equal messages equal, so that their hashes are.
func deterministic() proto.MarshalOptions { return proto.MarshalOptions{Deterministic: true} }

// toAny packs a message. Encoding fails only for strings that are not UTF-8,
// which come from a source that should have refused them; the error names the
// message's type and the caller adds the object.
func toAny(m proto.Message) (*anypb.Any, error) {
	body, err := deterministic().Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return &anypb.Any{TypeUrl: typePrefix + string(m.ProtoReflect().Descriptor().FullName()), Value: body}, nil
}

// mustAny packs a message that this package made of constants and numbers
// alone, so that encoding it cannot fail.
func mustAny(m proto.Message) *anypb.Any {
	a, err := toAny(m)
	if err != nil {
		panic(err)
	}
	return a
}

// adsSource tells a proxy to ask for a resource on the stream it already has.
func adsSource() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		InitialFetchTimeout:   duration(0),
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

// duration converts to the wire form.
func duration(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// u32 wraps a number whose absence has a meaning.
func u32(n uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(n) }

// boolean wraps a truth value whose absence has a meaning.
func boolean(b bool) *wrapperspb.BoolValue { return wrapperspb.Bool(b) }

// socketAddress is a TCP address in the wire form.
func socketAddress(host string, port uint16) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// addrAddress is the TCP address of an IP. IPv4 in IPv6 is written as IPv4.
func addrAddress(a netip.Addr, port uint16) *corev3.Address {
	return socketAddress(a.Unmap().String(), port)
}

// stringValue and structOf make dynamic values for metadata.
func stringValue(s string) *structpb.Value { return structpb.NewStringValue(s) }

func structOf(fields map[string]*structpb.Value) *structpb.Struct {
	return &structpb.Struct{Fields: fields}
}

func structValue(fields map[string]*structpb.Value) *structpb.Value {
	return structpb.NewStructValue(structOf(fields))
}

func listValue(values ...*structpb.Value) *structpb.Value {
	return structpb.NewListValue(&structpb.ListValue{Values: values})
}

// compactJSON takes the blanks out of JSON, and sorts the fields of its objects.
func compactJSON(text []byte) (string, error) {
	var tree any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return "", err
	}
	out, err := json.Marshal(tree)
	return string(out), err
}
