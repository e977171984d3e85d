package status

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// maxAncestors and maxParents bound lists, as the resource definitions do.
const (
	maxAncestors = 16
	maxParents   = 32
)

// Merge puts what is wanted of an object of a kind into its status as it stands,
// given as JSON or "" for none; a nil want is that nothing is said of it. What
// others wrote stays, and so does the time of a condition that does not change.
// It returns the new status as JSON, or nil if the old one says the same.
func Merge(kind mesh.ObjectKind, current string, want *gatewayapi.Status, now metav1.Time) ([]byte, error) {
	if want == nil {
		want = &gatewayapi.Status{}
	}
	switch kind {
	case mesh.KindGatewayClass:
		return merge(current, func(s *gatewayv1.GatewayClassStatus) {
			if want.Class != nil {
				s.Conditions = mergeConditions(s.Conditions, want.Class.Conditions, now)
			}
		})
	case mesh.KindGatewayAPIGateway:
		return merge(current, func(s *gatewayv1.GatewayStatus) {
			if want.Gateway != nil {
				mergeGateway(s, want.Gateway, now)
			}
		})
	case mesh.KindHTTPRoute, mesh.KindGRPCRoute, mesh.KindTLSRoute, mesh.KindTCPRoute:
		return merge(current, func(s *gatewayv1.RouteStatus) { mergeParents(s, want.Parents, now) })
	case mesh.KindBackendTLSPolicy:
		return merge(current, func(s *gatewayv1.PolicyStatus) { mergeAncestors(s, want.Ancestors, now) })
	}
	return nil, fmt.Errorf("merge status: kind %s has none", kind)
}

// merge changes a status of a type and returns it as JSON, nil if it is the same.
func merge[T any](current string, change func(*T)) ([]byte, error) {
	var before, after T
	for _, s := range []*T{&before, &after} {
		if current == "" {
			continue
		}
		if err := json.Unmarshal([]byte(current), s); err != nil {
			return nil, fmt.Errorf("decode status: %w", err)
		}
	}
	change(&after)
	if reflect.DeepEqual(before, after) {
		return nil, nil
	}
	return json.Marshal(after)
}

// mergeConditions replaces conditions of the same type and keeps others.
func mergeConditions(have, want []metav1.Condition, now metav1.Time) []metav1.Condition {
	out := slices.Clone(have)
	for _, w := range want {
		w.LastTransitionTime = now
		i := slices.IndexFunc(out, func(c metav1.Condition) bool { return c.Type == w.Type })
		if i < 0 {
			out = append(out, w)
			continue
		}
		if out[i].Status == w.Status && !out[i].LastTransitionTime.IsZero() {
			w.LastTransitionTime = out[i].LastTransitionTime
		}
		out[i] = w
	}
	return out
}

func mergeGateway(s, want *gatewayv1.GatewayStatus, now metav1.Time) {
	s.Conditions = slices.DeleteFunc(mergeConditions(s.Conditions, want.Conditions, now), func(c metav1.Condition) bool {
		return c.Type == string(gatewayv1.GatewayConditionInsecureFrontendValidationMode) && // goes when it is no longer so
			!slices.ContainsFunc(want.Conditions, func(w metav1.Condition) bool { return w.Type == c.Type })
	})
	s.Addresses = want.Addresses[:min(len(want.Addresses), maxAncestors)]
	if len(s.Addresses) == 0 {
		s.Addresses = nil
	}
	old := s.Listeners
	s.Listeners = nil
	for _, l := range want.Listeners {
		var have []metav1.Condition
		if i := slices.IndexFunc(old, func(o gatewayv1.ListenerStatus) bool { return o.Name == l.Name }); i >= 0 {
			have = old[i].Conditions
		}
		l.Conditions = mergeConditions(have, l.Conditions, now)
		s.Listeners = append(s.Listeners, l)
	}
}

// mergeParents replaces our part of a route's parents. Ours keep their order
// among those that were there.
func mergeParents(s *gatewayv1.RouteStatus, want []gatewayv1.RouteParentStatus, now metav1.Time) {
	s.Parents = mergeOurs(s.Parents, want, maxParents, now, func(p *gatewayv1.RouteParentStatus) told {
		return told{p.ControllerName, p.ParentRef, &p.Conditions}
	})
}

// mergeAncestors is the same for the ancestors of a policy.
func mergeAncestors(s *gatewayv1.PolicyStatus, want []gatewayv1.PolicyAncestorStatus, now metav1.Time) {
	s.Ancestors = mergeOurs(s.Ancestors, want, maxAncestors, now, func(p *gatewayv1.PolicyAncestorStatus) told {
		return told{p.ControllerName, p.AncestorRef, &p.Conditions}
	})
}

// told is what an entry of a status says: who says it, about whom, and what.
type told struct {
	by         gatewayv1.GatewayController
	about      gatewayv1.ParentReference
	conditions *[]metav1.Condition
}

// mergeOurs replaces what we say in a list that others write into, too, and cuts
// it to the number of entries that it may have. It is never nil if there was or
// is anything to say of ours.
func mergeOurs[T any](all, want []T, limit int, now metav1.Time, read func(*T) told) []T {
	out, mine := make([]T, 0, len(all)+len(want)), make([]told, 0, len(all))
	for i := range all {
		if x := read(&all[i]); x.by == gatewayapi.Controller {
			mine = append(mine, x)
		} else {
			out = append(out, all[i])
		}
	}
	if len(mine) == 0 && len(want) == 0 {
		return all
	}
	for _, w := range want {
		x := read(&w)
		var have []metav1.Condition
		if i := slices.IndexFunc(mine, func(m told) bool { return reflect.DeepEqual(m.about, x.about) }); i >= 0 {
			have = *mine[i].conditions
		}
		*x.conditions = mergeConditions(have, *x.conditions, now)
		out = append(out, w)
	}
	return out[:min(len(out), limit)]
}
