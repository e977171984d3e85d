package xds

import (
	"fmt"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// request is a DiscoveryRequest or a DeltaDiscoveryRequest as far as the engine
// needs it. A proxy sends one for every response, and in the state-of-the-world
// protocol repeats all names it is subscribed to; so a request is read by
// walking the wire, and names that are byte for byte those of the stream's last
// request are only hashed, not decoded.
type request struct {
	// Set by the stream before a message is received.
	delta bool
	sets  *nameSets
	// known maps a type URL to the hash of the names last seen for it, so that the
	// same names are recognised; nil remembers nothing.
	known func(typeURL []byte) (hash uint64, url string, ok bool)

	typeURL string
	node    *corev3.Node
	version string
	nonce   string
	// failed: the request carries error_detail, so it rejects a response.
	failed  bool
	message string
	// names are resource_names or resource_names_subscribe; nil with sameNames set
	// if they are those of the last request.
	names       *NameSet
	namesHash   uint64
	sameNames   bool
	unsubscribe []string
	// initial holds initial_resource_versions, nil if there are none.
	initial map[string]string
}

// fields are the numbers of a request's fields in one of the two protocols.
type fields struct {
	version, node, names, typeURL, unsubscribe, initial, nonce, failed protowire.Number
}

func fieldsOf(delta bool) fields {
	if delta {
		return fields{node: 1, typeURL: 2, names: 3, unsubscribe: 4, initial: 5, nonce: 6, failed: 7}
	}
	return fields{version: 1, node: 2, names: 3, typeURL: 4, nonce: 5, failed: 6}
}

// walk is what one pass over a message finds, as slices of it.
type walk struct {
	typeURL, version, nonce, node, failed []byte
	hasNode, hasFailed                    bool
	// names is the run of the names field, whole.
	names       []byte
	unsubscribe [][]byte
	initial     [][]byte
}

// decode reads a message. b may be reused after decode returns.
func (r *request) decode(b []byte) error {
	*r = request{delta: r.delta, sets: r.sets, known: r.known}
	f := fieldsOf(r.delta)
	var w walk
	if !w.scan(b, &f) {
		return r.decodeFull(b)
	}
	return r.take(&w, b)
}

// scan walks the message. It reports false for anything unusual, which is then
// left to the full parser: malformed input, a singular field that occurs twice,
// names that do not stand together, unknown groups.
func (w *walk) scan(b []byte, f *fields) bool {
	var seen uint16
	namesEnd := -1
	for off := 0; off < len(b); {
		num, typ, n := protowire.ConsumeTag(b[off:])
		if n != 1 {
			return false // malformed, or a field number above 15: not ours
		}
		if typ != protowire.BytesType {
			return false
		}
		v, m := protowire.ConsumeBytes(b[off+n:])
		if m < 0 {
			return false
		}
		start, end := off, off+n+m
		off = end
		switch num {
		case f.names:
			if namesEnd < 0 {
				w.names = b[start:end]
			} else if namesEnd != start {
				return false
			} else {
				w.names = w.names[:len(w.names)+end-start]
			}
			namesEnd = end
			continue
		case f.unsubscribe:
			w.unsubscribe = append(w.unsubscribe, v)
			continue
		case f.initial:
			w.initial = append(w.initial, v)
			continue
		}
		if seen&(1<<num) != 0 {
			return false
		}
		seen |= 1 << num
		switch num {
		case f.typeURL:
			w.typeURL = v
		case f.version:
			w.version = v
		case f.nonce:
			w.nonce = v
		case f.node:
			w.node, w.hasNode = v, true
		case f.failed:
			w.failed, w.hasFailed = v, true
		default:
			return false // resource locators and what the future brings
		}
	}
	return true
}

func (r *request) take(w *walk, b []byte) error {
	if !utf8.Valid(w.typeURL) || !utf8.Valid(w.version) || !utf8.Valid(w.nonce) {
		return r.decodeFull(b) // for its error
	}
	var lastHash uint64
	seen := false
	if r.known != nil {
		lastHash, r.typeURL, seen = r.known(w.typeURL)
	}
	if r.typeURL == "" {
		r.typeURL = string(w.typeURL)
	}
	r.version, r.nonce = string(w.version), string(w.nonce)
	if len(w.names) > 0 {
		r.namesHash = xxhash.Sum64(w.names)
	}
	if seen && r.namesHash == lastHash && !r.delta {
		r.sameNames = true
	} else {
		set, ok := r.sets.ofRegion(w.names, r.namesHash)
		if !ok {
			return r.decodeFull(b)
		}
		r.names = set
	}
	for _, v := range w.unsubscribe {
		if !utf8.Valid(v) {
			return r.decodeFull(b)
		}
		r.unsubscribe = append(r.unsubscribe, string(v))
	}
	return r.takeMessages(w, b)
}

// takeMessages reads the embedded messages.
func (r *request) takeMessages(w *walk, b []byte) error {
	if len(w.initial) > 0 {
		r.initial = make(map[string]string, len(w.initial))
		for _, v := range w.initial {
			if !r.takeInitial(v) {
				return r.decodeFull(b)
			}
		}
	}
	if w.hasNode {
		r.node = &corev3.Node{}
		if err := proto.Unmarshal(w.node, r.node); err != nil {
			return fmt.Errorf("decode request: node: %w", err)
		}
	}
	if w.hasFailed {
		var st rpcstatus.Status
		if err := proto.Unmarshal(w.failed, &st); err != nil {
			return fmt.Errorf("decode request: error_detail: %w", err)
		}
		r.failed, r.message = true, st.Message
	}
	return nil
}

// takeInitial reads one entry of initial_resource_versions: key 1, value 2.
func (r *request) takeInitial(b []byte) bool {
	var key, value string
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || typ != protowire.BytesType || num > 2 {
			return false
		}
		v, m := protowire.ConsumeBytes(b[n:])
		if m < 0 || !utf8.Valid(v) {
			return false
		}
		if num == 1 {
			key = string(v)
		} else {
			value = string(v)
		}
		b = b[n+m:]
	}
	r.initial[key] = value
	return true
}

// hashUnknown stands for the hash of names that were not found in one run.
const hashUnknown = ^uint64(0)

// decodeFull reads a message with the generated parser.
func (r *request) decodeFull(b []byte) error {
	*r = request{delta: r.delta, sets: r.sets, known: r.known, namesHash: hashUnknown}
	if r.delta {
		var m discoveryv3.DeltaDiscoveryRequest
		if err := proto.Unmarshal(b, &m); err != nil {
			return fmt.Errorf("decode delta request: %w", err)
		}
		r.node, r.typeURL, r.nonce = m.Node, m.TypeUrl, m.ResponseNonce
		r.names, r.unsubscribe = r.sets.of(m.ResourceNamesSubscribe), m.ResourceNamesUnsubscribe
		if len(m.InitialResourceVersions) > 0 {
			r.initial = m.InitialResourceVersions
		}
		r.failed, r.message = m.ErrorDetail != nil, m.ErrorDetail.GetMessage()
		return nil
	}
	var m discoveryv3.DiscoveryRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	r.node, r.typeURL, r.version, r.nonce = m.Node, m.TypeUrl, m.VersionInfo, m.ResponseNonce
	r.names = r.sets.of(m.ResourceNames)
	r.failed, r.message = m.ErrorDetail != nil, m.ErrorDetail.GetMessage()
	return nil
}
