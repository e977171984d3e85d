package kube

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// index says what depends on what, so that a change costs what it concerns.
type index struct {
	// slicesOf lists the slices of a service, ordered by name.
	slicesOf map[types.NamespacedName][]*slice
	// slicesByPod lists the slices that name a pod.
	slicesByPod map[types.NamespacedName][]*slice
	// slicesByAddr lists the slices that have an address without naming a pod.
	slicesByAddr map[netip.Addr][]*slice
	// podsByAddr lists the pods that have an address of their own, best first.
	podsByAddr map[netip.Addr][]*pod
	podsByNode map[string]map[types.NamespacedName]*pod
	// podsIn and selecting serve derived endpoints only: the pods of a namespace
	// and the services in it that have a selector.
	podsIn    map[string]map[types.NamespacedName]*pod
	selecting map[string]map[types.NamespacedName]struct{}
	// gatewayServices are the services that may be network gateways.
	gatewayServices map[types.NamespacedName]struct{}
}

func newIndex() index {
	return index{
		slicesOf:        map[types.NamespacedName][]*slice{},
		slicesByPod:     map[types.NamespacedName][]*slice{},
		slicesByAddr:    map[netip.Addr][]*slice{},
		podsByAddr:      map[netip.Addr][]*pod{},
		podsByNode:      map[string]map[types.NamespacedName]*pod{},
		podsIn:          map[string]map[types.NamespacedName]*pod{},
		selecting:       map[string]map[types.NamespacedName]struct{}{},
		gatewayServices: map[types.NamespacedName]struct{}{},
	}
}

// addRef puts a slice into a list of an index unless it is there.
func addRef[K comparable](m map[K][]*slice, k K, s *slice) {
	if list := m[k]; !slices.Contains(list, s) {
		m[k] = append(list, s)
	}
}

func removeRef[K comparable](m map[K][]*slice, k K, s *slice) {
	list := m[k]
	i := slices.Index(list, s)
	if i < 0 {
		return
	}
	if len(list) == 1 {
		delete(m, k)
		return
	}
	m[k] = slices.Delete(list, i, i+1)
}

func addTo[K comparable, N comparable, V any](m map[K]map[N]V, k K, n N, v V) {
	in := m[k]
	if in == nil {
		in = map[N]V{}
		m[k] = in
	}
	in[n] = v
}

func removeFrom[K comparable, N comparable, V any](m map[K]map[N]V, k K, n N) {
	in := m[k]
	delete(in, n)
	if len(in) == 0 {
		delete(m, k)
	}
}
