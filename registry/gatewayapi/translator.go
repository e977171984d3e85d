package gatewayapi

import (
	"maps"
	"reflect"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Translator translates again and again. What it gives is what [Translate] gives
// for the same input, but routes are read anew only if they, or what they refer
// to, are other than the last time, and what is derived from the same rules as
// the last time is the same object. The zero value is ready for use; it is for
// one goroutine at a time.
type Translator struct {
	last *translator
}

// translator is one translation. All that it has found out stays with it for the
// next one.
type translator struct {
	in  Input
	out *Result
	// last is the translation before, nil once this one has ended.
	last *translator

	namespaces map[string]map[string]string
	grants     map[grantKey]struct{}
	classes    map[string]*class
	gateways   map[Name]*gateway
	services   map[serviceRef]*mesh.Service
	mesh       map[meshKey]*hostRules
	policies   map[Name][]*policy
	// led counts how often routes lead from a Gateway to a Service.
	led map[Name]map[*gateway]int

	// lists are the objects that everything but routes was read from.
	lists map[mesh.ObjectKind][]*mesh.Object
	// reading notes what the route that is being read depends on, nil outside.
	reading *reading
	// unguarded says that references need no ReferenceGrant.
	unguarded bool
	// attaching notes where the route that is being attached counts.
	attaching *attachment
	readings  map[mesh.ObjectKey]*reading
	routes    map[mesh.ObjectKey]*attachment
	derived   map[mesh.ObjectKey]*derivation
	objects   map[mesh.ObjectKey]*mesh.Object
	changes   *changes // nil while everything is translated
	// fresh is how many Services were asked for when everything was translated.
	fresh int
}

type serviceRef struct {
	Name
	imported bool
}

func newTranslator(in Input, last *translator) *translator {
	if last == nil {
		last = &translator{}
	}
	t := &translator{
		in: in, last: last, out: &Result{Asked: map[Name]struct{}{}, Credentials: map[Credential]struct{}{}},
		namespaces: map[string]map[string]string{}, gateways: map[Name]*gateway{}, services: map[serviceRef]*mesh.Service{},
		mesh: map[meshKey]*hostRules{}, policies: map[Name][]*policy{}, led: map[Name]map[*gateway]int{},
		lists:    map[mesh.ObjectKind][]*mesh.Object{},
		readings: make(map[mesh.ObjectKey]*reading, len(last.readings)), routes: make(map[mesh.ObjectKey]*attachment, len(last.routes)),
		derived: make(map[mesh.ObjectKey]*derivation, len(last.derived)), objects: make(map[mesh.ObjectKey]*mesh.Object, len(last.objects)),
	}
	if !in.Silent {
		t.out.Statuses = map[mesh.ObjectKey]*Status{}
	}
	return t
}

// Translate translates all objects.
func (m *Translator) Translate(in Input) *Result {
	t := newTranslator(in, m.last)
	t.run()
	t.last, m.last = nil, t
	t.out.Objects = slices.SortedFunc(maps.Values(t.objects), func(a, b *mesh.Object) int { return compareKeys(a.Key, b.Key) })
	return t.out
}

// run is one translation of everything.
func (t *translator) run() {
	for _, o := range t.list(mesh.KindNamespace) {
		t.namespaces[o.Key.Name] = o.Labels
	}
	t.readGrants()
	t.readClasses()
	t.readPolicies()
	t.readGateways()
	t.eachRoute(t.follow)
	t.judgePolicies()
	for _, k := range slices.SortedFunc(maps.Keys(t.gateways), compareNames) {
		t.finish(t.gateways[k])
	}
	for k := range t.mesh {
		t.finishMesh(k)
	}
	for n := range t.policies {
		t.finishPolicy(n)
	}
	t.fresh = len(t.services)
}

// list lists the objects of a kind that is no route.
func (t *translator) list(kind mesh.ObjectKind) []*mesh.Object {
	t.lists[kind] = t.in.Objects(kind)
	return t.lists[kind]
}

// eachRoute calls f for the routes of all kinds, oldest first.
func (t *translator) eachRoute(f func(*mesh.Object)) {
	for _, kind := range routeKinds() {
		for _, o := range t.in.Objects(kind) {
			f(o)
		}
	}
}

func routeKinds() []mesh.ObjectKind {
	return []mesh.ObjectKind{mesh.KindHTTPRoute, mesh.KindGRPCRoute, mesh.KindTLSRoute, mesh.KindTCPRoute}
}

// follow reads a route and attaches it.
func (t *translator) follow(o *mesh.Object) {
	a := &attachment{object: o}
	t.routes[o.Key] = a
	c := commonOf(o.Value)
	if c == nil || !t.mine(o.Key.Namespace, c) {
		return
	}
	if a.route = t.read(o, c); a.route != nil {
		t.attaching = a
		t.attach(a.route)
		t.attaching = nil
	}
}

// commonOf is what routes of all kinds have; nil of what is no route.
func commonOf(value any) *gatewayv1.CommonRouteSpec {
	switch spec := value.(type) {
	case *gatewayv1.HTTPRouteSpec:
		return &spec.CommonRouteSpec
	case *gatewayv1.GRPCRouteSpec:
		return &spec.CommonRouteSpec
	case *gatewayv1.TLSRouteSpec:
		return &spec.CommonRouteSpec
	case *gatewayv1.TCPRouteSpec:
		return &spec.CommonRouteSpec
	}
	return nil
}

// reading is a route as it was read, and what that depended on.
type reading struct {
	// object is the route; it may be a later one than the route that was read if
	// it says the same.
	object   *mesh.Object
	route    *route
	services map[serviceRef]*mesh.Service
	grants   map[grantKey]bool
}

// read returns a route as it was read last if nothing is different, else it
// reads it.
func (t *translator) read(o *mesh.Object, c *gatewayv1.CommonRouteSpec) *route {
	x := t.lastReading(o.Key)
	if x == nil || !x.says(o) || !t.holds(x) {
		x = &reading{services: map[serviceRef]*mesh.Service{}, grants: map[grantKey]bool{}}
		t.reading = x
		x.route = t.readRoute(o, c)
		if x.route.within = x.route; x.route.denied {
			t.unguarded = true
			x.route.within = t.readRoute(o, c)
			t.unguarded = false
		}
		t.reading = nil
	}
	x.object = o
	t.readings[o.Key] = x
	return x.route
}

func (t *translator) lastReading(k mesh.ObjectKey) *reading {
	if t.last != nil {
		return t.last.readings[k]
	}
	return t.readings[k]
}

// says reports whether an object says what was read.
func (x *reading) says(o *mesh.Object) bool {
	return x.object == o || x.object.Generation == o.Generation && x.object.Created.Equal(o.Created) &&
		x.object.Origin == o.Origin && reflect.DeepEqual(x.object.Value, o.Value)
}

// holds reports whether everything that was looked up is as it was.
func (t *translator) holds(x *reading) bool {
	same := true
	for ref, s := range x.services { // all of them: they are asked for
		same = t.service(ref.Name, ref.imported) == s && same
	}
	for k, ok := range x.grants {
		same = t.granted(k) == ok && same
	}
	return same
}

// service finds a Service and notes that it was asked for.
func (t *translator) service(n Name, imported bool) *mesh.Service {
	k := serviceRef{n, imported}
	s, ok := t.services[k]
	if !ok {
		t.out.Asked[n] = struct{}{}
		s = t.in.Service(n, imported)
		t.services[k] = s
	}
	if t.reading != nil {
		t.reading.services[k] = s
	}
	return s
}

// credential tells what is known of a Secret or ConfigMap and notes that it is
// of interest.
func (t *translator) credential(kind string, n Name) CredentialState {
	t.out.Credentials[Credential{kind, n}] = struct{}{}
	if t.in.Credential == nil {
		return CredentialUnknown
	}
	return t.in.Credential(kind, n)
}

// derivation is an object that was derived from rules, and from which.
type derivation struct {
	rules            []*rule
	streams          []placed
	gateways, spaces []string
	service          *mesh.Service
	// otherwise and sealed are what else decides about connections.
	otherwise string
	sealed    bool
	object    *mesh.Object
}

// same reports whether two objects are derived from the same.
func (d *derivation) same(other *derivation) bool {
	return other != nil && slices.Equal(d.rules, other.rules) && slices.Equal(d.streams, other.streams) &&
		slices.Equal(d.gateways, other.gateways) && slices.Equal(d.spaces, other.spaces) && d.service == other.service &&
		d.otherwise == other.otherwise && d.sealed == other.sealed
}

// derive adds the object that is derived from rules under a key: the last one if
// it was derived from the same, else the one that it makes, nil for none.
func (t *translator) derive(k mesh.ObjectKey, d *derivation, make func() *mesh.Object) {
	last := t.derived[k]
	if t.last != nil {
		last = t.last.derived[k]
	}
	if d.same(last) {
		d = last
	} else if d.object = make(); d.object != nil {
		d.object.Key = k
	}
	t.derived[k] = d
	if d.object == nil {
		t.drop(k)
		return
	}
	t.emit(d.object)
}

// emit adds a derived object.
func (t *translator) emit(o *mesh.Object) {
	if t.objects[o.Key] == o {
		return
	}
	o.Origin.Kind, o.Origin.Namespace, o.Origin.Name = string(o.Key.Kind), o.Key.Namespace, o.Key.Name
	t.objects[o.Key] = o
	if t.changes != nil {
		t.changes.objects[o.Key] = o
	}
}

// drop takes a derived object away, if there is one under the key.
func (t *translator) drop(k mesh.ObjectKey) {
	if t.objects[k] == nil {
		return
	}
	delete(t.objects, k)
	if t.changes != nil {
		t.changes.objects[k] = nil
	}
}

// judge notes the status that is wanted of an object, unless nobody wants any.
func (t *translator) judge(k mesh.ObjectKey, status func() *Status) {
	if !t.in.Silent {
		t.out.Statuses[k] = status()
	}
}
