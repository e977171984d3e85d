package load

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// frame is a message as bytes: what the load client receives and the floor
// server sends. A sent frame's body is shared by all streams, its tail is not; a
// received one's body is valid until its buffer is freed.
type frame struct {
	body, tail []byte
	buf        mem.Buffer
}

// codec passes frames through and encodes everything else as protobuf.
type codec struct{}

var _ encoding.CodecV2 = codec{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f.body), mem.SliceBuffer(f.tail)}, nil
	}
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("encode %T: not a message", v)
	}
	b, err := proto.Marshal(m)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		f.buf = data.MaterializeToBuffer(mem.DefaultBufferPool())
		f.body = f.buf.ReadOnlyData()
		return nil
	}
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("decode %T: not a message", v)
	}
	return proto.Unmarshal(data.Materialize(), m)
}

// Field numbers of DeltaDiscoveryResponse and Resource (envoy/service/discovery/v3).
const (
	responseResources = 2
	responseTypeURL   = 4
	responseNonce     = 5
	responseRemoved   = 6
	resourceBody      = 2
	resourceName      = 3
	anyValue          = 2
)

// response is a delta response as far as a load client looks into it.
type response struct {
	typeURL, nonce string
	resources      []resource
	removed        [][]byte
}

// resource points into the response it came with.
type resource struct {
	name []byte
	body []byte // the value inside the Any
}

// fields walks the length-delimited fields of a message.
func fields(b []byte, f func(n protowire.Number, v []byte)) error {
	for len(b) > 0 {
		n, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return protowire.ParseError(k)
		}
		b = b[k:]
		if typ != protowire.BytesType {
			if k = protowire.ConsumeFieldValue(n, typ, b); k < 0 {
				return protowire.ParseError(k)
			}
			b = b[k:]
			continue
		}
		v, k := protowire.ConsumeBytes(b)
		if k < 0 {
			return protowire.ParseError(k)
		}
		f(n, v)
		b = b[k:]
	}
	return nil
}

func parseResponse(b []byte) (response, error) {
	var r response
	err := fields(b, func(n protowire.Number, v []byte) {
		switch n {
		case responseResources:
			r.resources = append(r.resources, parseResource(v))
		case responseTypeURL:
			r.typeURL = string(v)
		case responseNonce:
			r.nonce = string(v)
		case responseRemoved:
			r.removed = append(r.removed, v)
		}
	})
	return r, err
}

func parseResource(b []byte) resource {
	var r resource
	_ = fields(b, func(n protowire.Number, v []byte) {
		switch n {
		case resourceName:
			r.name = v
		case resourceBody:
			_ = fields(v, func(n protowire.Number, v []byte) {
				if n == anyValue {
					r.body = v
				}
			})
		}
	})
	return r
}

// markIn finds the number of the change that an assignment shows, or -1.
func markIn(body []byte) int {
	_, rest, ok := bytes.Cut(body, []byte("10.250."))
	if !ok {
		return -1
	}
	high, rest := decimal(rest)
	if len(rest) == 0 || rest[0] != '.' {
		return -1
	}
	low, _ := decimal(rest[1:])
	return high<<8 | low
}

// decimal reads the digits that b begins with.
func decimal(b []byte) (n int, rest []byte) {
	for len(b) > 0 && b[0] >= '0' && b[0] <= '9' {
		n, b = n*10+int(b[0]-'0'), b[1:]
	}
	return n, b
}
