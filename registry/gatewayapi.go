package registry

import (
	"cmp"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// Objects of the Gateway API are translated into Istio's within the batch that
// brings them, or a Service that they ask for: what the Store says stays a
// function of the newest states alone. The translations stand beside the users'
// own objects, and before one of the same name.

// routing is what the Gateway API's objects were last translated into.
type routing struct {
	translator gatewayapi.Translator
	derived    map[mesh.ObjectKey]*mesh.Object
	asked      map[gatewayapi.Name]struct{}
}

// clusterSetSuffix ends the host names that a Service has in all clusters.
const clusterSetSuffix = ".svc.clusterset.local"

// RoutingInput is what objects of the Gateway API are translated from. Nothing is
// known of credentials.
func (c *Catalog) RoutingInput() gatewayapi.Input {
	return gatewayapi.Input{Objects: c.Objects, Service: c.kubernetesService}
}

// kubernetesService finds the Service of a name, under its name in all clusters
// if it is imported.
func (c *Catalog) kubernetesService(n gatewayapi.Name, imported bool) *mesh.Service {
	all := c.InNamespace(n.Namespace) // by host name, which begins with that of the Service
	prefix := mesh.Hostname(n.Name + ".")
	i, _ := slices.BinarySearchFunc(all, prefix, func(s *mesh.Service, p mesh.Hostname) int { return cmp.Compare(s.Key.Hostname, p) })
	for _, s := range all[i:] {
		if !strings.HasPrefix(string(s.Key.Hostname), string(prefix)) {
			break
		}
		if s.Lead.Name == n.Name && !s.Lead.FromEntry() && strings.HasSuffix(string(s.Key.Hostname), clusterSetSuffix) == imported {
			return s
		}
	}
	return nil
}

// shown is what the catalog holds under a key when a cluster's own object is o.
func (b *batch) shown(k mesh.ObjectKey, o *mesh.Object) *mesh.Object {
	if d := b.store.routing.derived[k]; d != nil {
		return d
	}
	return o
}

// route translates the Gateway API's objects anew if anything that they depend on
// is different in this batch, and touches what came out different; touched tells
// whether anything did. cat has the services and objects of the batch.
func (b *batch) route(cat *Catalog, changed map[mesh.ServiceKey]ServiceChange) (touched bool) {
	if !b.rerouted(changed) {
		return false
	}
	s := b.store
	d := s.routing.translator.Update(cat.RoutingInput())
	s.routing.asked = d.Asked
	if s.routing.derived == nil {
		s.routing.derived = map[mesh.ObjectKey]*mesh.Object{}
	}
	for k, o := range d.Objects {
		have := s.routing.derived[k]
		if o == nil {
			delete(s.routing.derived, k)
			if sh := s.shards[s.primary]; sh != nil {
				o = sh.objects[k] // the user's own comes to light
			}
		} else {
			o.Origin.Cluster = s.primary // nobody else has it yet
			if have != nil && sameObject(have, o) {
				continue
			}
			s.routing.derived[k] = o
		}
		b.touchObject(k, o)
		touched = true
	}
	return touched
}

// rerouted reports whether the batch changes anything that the translation of the
// Gateway API's objects depends on. What is written in a status is not read.
func (b *batch) rerouted(changed map[mesh.ServiceKey]ServiceChange) bool {
	before := b.store.catalog.Load()
	for k, now := range b.objects {
		if gatewayapi.Reads(k.Kind) && !sameMeaning(before.Object(k), now) {
			return true
		}
	}
	if len(b.store.routing.asked) == 0 {
		return false
	}
	for k, c := range changed {
		if !c.Aspects.Has(AspectDefinition) {
			continue
		}
		for _, svc := range []*mesh.Service{c.Before, c.After} {
			if svc == nil {
				continue
			}
			if _, ok := b.store.routing.asked[gatewayapi.Name{Namespace: k.Namespace, Name: svc.Lead.Name}]; ok {
				return true
			}
		}
	}
	return false
}

// sameMeaning compares two objects but for their status.
func sameMeaning(a, b *mesh.Object) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.Status, y.Status = nil, nil
	return sameObject(&x, &y)
}

// sameSpec compares specifications of any form.
func sameSpec(a, b *mesh.Object) bool {
	if a.Generation != b.Generation || (a.Spec == nil) != (b.Spec == nil) || (a.Value == nil) != (b.Value == nil) {
		return false
	}
	return (a.Spec == nil || proto.Equal(a.Spec, b.Spec)) && (a.Value == nil || reflect.DeepEqual(a.Value, b.Value))
}
