package kube

import (
	"strings"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// fault is one thing that is wrong with an object.
type fault struct{ field, message string }

// faults collects what is wrong with one object.
type faults []fault

func (f *faults) add(field, message string) { *f = append(*f, fault{field, message}) }

// problemSet reports the problems of one cluster's objects. It remembers which
// ones it reported, so that a healthy object costs no lock and problems that
// others report stay.
type problemSet struct {
	cluster mesh.ClusterID
	list    *registry.Problems
	log     *zap.Logger
	set     map[mesh.ObjectRef]struct{}
}

func (p *problemSet) ref(kind Kind, namespace, name string) mesh.ObjectRef {
	return mesh.ObjectRef{Cluster: p.cluster, Kind: string(kind), Namespace: namespace, Name: name}
}

// report sets or clears the problem of an object. The first fault names the
// field; the others are told in the message.
func (p *problemSet) report(kind Kind, namespace, name string, f faults) {
	if len(f) == 0 {
		p.clear(kind, namespace, name)
		return
	}
	message := f[0].message
	for _, x := range f[1:] {
		message += "; " + x.field + ": " + x.message
	}
	ref := p.ref(kind, printable(namespace), printable(name))
	p.set[ref] = struct{}{}
	if p.list == nil || p.list.Set(ref, f[0].field, message) {
		p.log.Warn("object is not served as written", zap.Stringer("object", ref), zap.String("field", f[0].field), zap.String("reason", message))
	}
}

func (p *problemSet) clear(kind Kind, namespace, name string) {
	if len(p.set) == 0 {
		return
	}
	ref := p.ref(kind, printable(namespace), printable(name))
	if _, ok := p.set[ref]; !ok {
		return
	}
	delete(p.set, ref)
	if p.list != nil {
		p.list.Clear(ref)
	}
}

// clean reports whether a text can travel to a proxy: protobuf takes only valid
// UTF-8, and one bad string would spoil the resource of a whole service.
func clean(texts ...string) bool {
	for _, s := range texts {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, isControl) {
			return false
		}
	}
	return true
}

func cleanMap(m map[string]string) bool {
	for k, v := range m {
		if !clean(k, v) {
			return false
		}
	}
	return true
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// isDNSName reports whether a name consists of the characters of a DNS
// subdomain only. Anything else could pass for another part of a host name or
// of a SPIFFE ID.
func isDNSName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

// isDNSLabel is isDNSName for one label.
func isDNSLabel(s string) bool { return len(s) <= 63 && isDNSName(s) && !strings.Contains(s, ".") }

// printable makes a name fit for a message.
func printable(s string) string {
	if clean(s) && len(s) <= 253 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if isControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), 253)], "?"))
}

// sweep clears the problems of this cluster's objects that an earlier source
// reported and that no longer exist. Mesh ConfigMaps are left alone:
// registry/config reports on them too.
func (p *problemSet) sweep() {
	if p.list == nil {
		return
	}
	for _, x := range p.list.List() {
		switch Kind(x.Object.Kind) {
		case KindService, KindEndpointSlice, KindPod, KindNode, KindNamespace, KindGateway, KindServiceImport:
			if _, ok := p.set[x.Object]; !ok && x.Object.Cluster == p.cluster {
				p.list.Clear(x.Object)
			}
		}
	}
}
