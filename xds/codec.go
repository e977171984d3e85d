package xds

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// codec lets the engine's own requests and responses past gRPC's protobuf
// codec: a response is a list of shared slices that nobody copies, a request is
// read by walking the wire. Every other message, of any other service on the
// same server, is ordinary protobuf.
type codec struct{ pool mem.BufferPool }

var _ encoding.CodecV2 = codec{}

// newCodec returns a codec that reads requests from the pool.
func newCodec(pool mem.BufferPool) codec { return codec{pool} }

// newBufferPool returns a pool for received messages. Its steps are fine enough
// that a request of 45 KB (a proxy that repeats 1,000 names) does not take, and
// clear, the megabyte that gRPC's default pool would hand out.
func newBufferPool() mem.BufferPool {
	return mem.NewTieredBufferPool(256, 1<<12, 1<<14, 1<<15, 1<<16, 1<<17, 1<<18, 1<<20, MaxRequestBytes)
}

// MaxRequestBytes bounds one request of a proxy.
const MaxRequestBytes = 4 << 20

// Name is that of gRPC's own codec, because what is on the wire is protobuf.
func (codec) Name() string { return "proto" }

// Marshal hands over a response's slices or encodes any other message.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*response); ok {
		return r.data, nil
	}
	m, ok := message(v)
	if !ok {
		return nil, fmt.Errorf("encode %T: not a protobuf message", v)
	}
	// Never from the default pool: above 32 KB it hands out cleared megabytes.
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal reads a request of the engine or any other message.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	b := data.MaterializeToBuffer(c.pool)
	defer b.Free()
	if r, ok := v.(*request); ok {
		return r.decode(b.ReadOnlyData())
	}
	m, ok := message(v)
	if !ok {
		return fmt.Errorf("decode into %T: not a protobuf message", v)
	}
	return proto.Unmarshal(b.ReadOnlyData(), m)
}

func message(v any) (proto.Message, bool) {
	switch m := v.(type) {
	case proto.Message:
		return m, true
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(m), true
	}
	return nil, false
}

// response is one message to a proxy: a head that all responses of a type
// share, the shared records, and a tail of its own.
type response struct {
	data mem.BufferSlice
	size int
}

// Numbers of response fields. Those of the two protocols are the same where the
// engine uses them, except for removals, which only delta has.
const (
	fieldRespVersion      = 1
	fieldRespTypeURL      = 4
	fieldRespNonce        = 5
	fieldSotWControlPlane = 6
	fieldDeltaRemoved     = 6
	fieldDeltaControl     = 7
)

// responseHead encodes the fields that all responses of a type share.
func responseHead(typeURL, identifier string, delta bool) mem.Buffer {
	b := appendString(nil, fieldRespTypeURL, typeURL)
	control := appendString(nil, 1, identifier) // ControlPlane.identifier
	field := protowire.Number(fieldSotWControlPlane)
	if delta {
		field = fieldDeltaControl
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return mem.SliceBuffer(protowire.AppendBytes(b, control))
}

// appendTail encodes what is a response's own: removed names, version, nonce.
func appendTail(b []byte, removed []string, version, nonce uint64) []byte {
	for _, n := range removed {
		b = appendString(b, fieldDeltaRemoved, n)
	}
	b = protowire.AppendTag(b, fieldRespVersion, protowire.BytesType)
	b = putHex16(append(b, versionLen), version)
	b = protowire.AppendTag(b, fieldRespNonce, protowire.BytesType)
	return putHex16(append(b, versionLen), nonce)
}

// tailSize is the size of a tail without removed names.
const tailSize = 2 * (2 + versionLen)
