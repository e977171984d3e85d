package xds

import (
	"encoding/binary"
	"encoding/hex"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Resource is one encoded resource. It is immutable and shared by every stream
// that was sent it.
type Resource struct {
	Name string
	// Version is the hash of the content: equal on every replica that builds the same.
	Version string
	// Revision is the Store's revision from which the resource was built.
	Revision uint64
	// Body is the resource as one record of a delta response, ready to be spliced
	// in. Its tail, from sotw on, is the same resource as a record of a
	// state-of-the-world response: Resource.resource and
	// DiscoveryResponse.resources happen to be the same field number and type, so
	// one buffer serves both protocols.
	Body []byte

	sotw, value int // offsets into Body: of the record, and of the message itself
	hash        uint64
	// The same bytes boxed for gRPC, so that sending allocates nothing per record.
	deltaRecord, sotwRecord mem.Buffer
}

// absent stands for a resource that was built and does not exist.
var absent = &Resource{} //nolint:gochecknoglobals // a constant, compared by address

func (r *Resource) exists() bool { return r != nil && r != absent }

// Message is the encoded resource without any envelope.
func (r *Resource) Message() []byte { return r.Body[r.value:] }

// Field numbers of the messages that are written and read by hand.
const (
	fieldResources   = 2 // DiscoveryResponse, DeltaDiscoveryResponse
	fieldResVersion  = 1 // Resource
	fieldResResource = 2
	fieldResName     = 3
	fieldAnyType     = 1 // Any
	fieldAnyValue    = 2
)

// versionLen is the length of a version: a 64-bit hash in hexadecimal.
const versionLen = 16

// newResource wraps an encoded message. message is copied.
func newResource(typeURL, name string, revision uint64, message []byte) *Resource {
	return hashedResource(typeURL, name, revision, message, xxhash.Sum64(message))
}

// completed is a resource with something added, for a single proxy. Its version
// is made of the stamp: nothing that is told of it allows guesses at the addition.
func completed(typeURL string, r *Resource, message []byte, stamp string) *Resource {
	return hashedResource(typeURL, r.Name, r.Revision, message, r.hash^xxhash.Sum64String(stamp))
}

func hashedResource(typeURL, name string, revision uint64, message []byte, hash uint64) *Resource {
	version := hex16(hash)
	anyLen := sizeBytes(len(typeURL)) + sizeBytes(len(message))
	recLen := sizeBytes(versionLen) + sizeBytes(len(name)) + sizeBytes(anyLen)

	b := make([]byte, 0, sizeBytes(recLen))
	b = protowire.AppendTag(b, fieldResources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(recLen))
	b = appendString(b, fieldResVersion, version)
	b = appendString(b, fieldResName, name)
	sotw := len(b)
	b = protowire.AppendTag(b, fieldResResource, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(anyLen))
	b = appendString(b, fieldAnyType, typeURL)
	b = protowire.AppendTag(b, fieldAnyValue, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(message)))
	value := len(b)
	b = append(b, message...)
	return &Resource{Name: name, Version: version, Revision: revision, Body: b, sotw: sotw, value: value, hash: hash,
		deltaRecord: mem.SliceBuffer(b), sotwRecord: mem.SliceBuffer(b[sotw:])}
}

// sizeBytes is the size of a length-delimited field with a one-byte tag.
func sizeBytes(n int) int { return 1 + protowire.SizeBytes(n) }

func appendString(b []byte, field protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// hex16 renders 64 bits as 16 hexadecimal digits.
func hex16(v uint64) string {
	var out [16]byte
	return string(putHex16(out[:0], v))
}

func putHex16(b []byte, v uint64) []byte {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], v)
	return hex.AppendEncode(b, raw[:])
}

// parseHex16 reads what hex16 writes.
func parseHex16(s string) (uint64, bool) {
	if len(s) != 16 {
		return 0, false
	}
	var v uint64
	for i := range len(s) {
		var d byte
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			d = c - '0'
		case c >= 'a' && c <= 'f':
			d = c - 'a' + 10
		default:
			return 0, false
		}
		v = v<<4 | uint64(d)
	}
	return v, true
}
