package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"go.uber.org/zap"
	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// Roots in ConfigMaps say whom gateways trust: servers, by BackendTLSPolicies, and
// clients, by Gateways. They are public and no Secrets, so that no right to list
// Secrets is asked for; but only roots that the configuration of the mesh names
// are read, or those of the gateway's own namespace. The ConfigMaps are those of
// the primary, as the objects are that name them.

// maxRootMaps bounds how many ConfigMaps one name may name.
const maxRootMaps = 16

// rootsKey is the entry of a ConfigMap that has its roots.
const rootsKey = "ca.crt"

// parseRootsName reads configmap://NAMESPACE/NAME, of several with commas between
// NAMESPACE/NAME; "-cacert" may follow.
func parseRootsName(resource string) ([]gatewayapi.Name, error) {
	var out []gatewayapi.Name
	for n := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(resource, gatewayapi.RootsScheme), secretRootsSuffix), ",") {
		ns, name, _ := strings.Cut(n, "/")
		if len(validation.IsDNS1123Label(ns)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 || len(out) == maxRootMaps {
			return nil, fmt.Errorf("roots %.300q: want configmap://NAMESPACE/NAME", resource)
		}
		out = append(out, gatewayapi.Name{Namespace: ns, Name: name})
	}
	return out, nil
}

func isRoots(resource string) bool { return strings.HasPrefix(resource, gatewayapi.RootsScheme) }

// rootsOf are the roots that objects of a kind name, by ConfigMap.
type (
	rootsOfRules    map[gatewayapi.Name]struct{}
	rootsOfGateways map[gatewayapi.Name]struct{}
)

// mayTrust reports whether a gateway of a namespace may have the roots of a
// ConfigMap: of its own namespace, or named by an object that is in force.
func (c *Control) mayTrust(namespace string, n gatewayapi.Name) bool {
	if n.Namespace == namespace {
		return true
	}
	cat := c.store.Catalog()
	if _, ok := registry.Derived(cat, mesh.KindDestinationRule, func(all []*mesh.Object) rootsOfRules {
		return namedRoots(all, func(s *networking.DestinationRule) []*networking.TrafficPolicy {
			out := []*networking.TrafficPolicy{s.GetTrafficPolicy()}
			for _, x := range s.GetSubsets() {
				out = append(out, x.GetTrafficPolicy())
			}
			return out
		}, func(p *networking.TrafficPolicy) []string {
			out := []string{p.GetTls().GetCredentialName()}
			for _, x := range p.GetPortLevelSettings() {
				out = append(out, x.GetTls().GetCredentialName())
			}
			return out
		})
	})[n]; ok {
		return true
	}
	_, ok := registry.Derived(cat, mesh.KindGateway, func(all []*mesh.Object) rootsOfGateways {
		return namedRoots(all, (*networking.Gateway).GetServers, func(s *networking.Server) []string { return []string{s.GetTls().GetCaCertCredentialName()} })
	})[n]
	return ok
}

// namedRoots collects the ConfigMaps that parts of objects name.
func namedRoots[T, P any](all []*mesh.Object, parts func(T) []P, names func(P) []string) map[gatewayapi.Name]struct{} {
	out := map[gatewayapi.Name]struct{}{}
	for _, o := range all {
		spec, ok := any(o.Spec).(T)
		if !ok {
			continue
		}
		for _, p := range parts(spec) {
			for _, resource := range names(p) {
				if !isRoots(resource) {
					continue
				}
				if list, err := parseRootsName(resource); err == nil {
					for _, n := range list {
						out[n] = struct{}{}
					}
				}
			}
		}
	}
	return out
}

// rootPlaces are the ConfigMaps that roots are in.
func (g *gatewaySecrets) rootPlaces(names []gatewayapi.Name) []secretKey {
	var out []secretKey
	for _, n := range names {
		out = append(out, secretKey{cluster: g.c.settings.primary(), namespace: n.Namespace, name: n.Name, configMap: true})
	}
	return out
}

// rootsResource makes the resource of roots in ConfigMaps: the roots of all of
// them. A ConfigMap that is not there, or holds none, adds nothing; if none adds
// any, nobody is trusted. That is told, so that what the proxy trusted before
// does not outlive it. What cannot be read changes nothing.
func (g *gatewaySecrets) rootsResource(ctx context.Context, namespace, resource string) (*tlsv3.Secret, error) {
	names, err := parseRootsName(resource)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if !g.c.mayTrust(namespace, n) {
			return nil, fmt.Errorf("roots %q: ConfigMap %s is in another namespace than the proxy, which is in %s, and nothing in the mesh's configuration names it", resource, n, namespace)
		}
	}
	var pool []byte
	var poor []error
	for _, k := range g.rootPlaces(names) {
		data, err := g.watches.get(ctx, k)
		if err != nil {
			return nil, err
		}
		if err := checkRoots(data[rootsKey]); err != nil {
			poor = append(poor, fmt.Errorf("ConfigMap %s, entry %s: %w", k, rootsKey, err))
			continue
		}
		pool = append(bytes.TrimRight(append(pool, data[rootsKey]...), "\n"), '\n')
	}
	if len(poor) > 0 {
		g.c.access.refuse("roots are missing", zap.String("name", resource), zap.Error(errors.Join(poor...)))
	}
	v := &tlsv3.CertificateValidationContext{TrustedCa: inlined(pool)}
	if len(pool) == 0 {
		v = trustsNobody()
	}
	return &tlsv3.Secret{Name: resource, Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}}, nil
}

// trustsNobody accepts no certificate: it wants one with a digest that none has.
func trustsNobody() *tlsv3.CertificateValidationContext {
	return &tlsv3.CertificateValidationContext{VerifyCertificateHash: []string{strings.Repeat("00", 32)}}
}

// places are the Secrets and ConfigMaps that a resource is made from; none of a
// name that is none.
func (g *gatewaySecrets) places(resource string, p *mesh.Proxy) []secretKey {
	if isRoots(resource) {
		names, _ := parseRootsName(resource)
		return g.rootPlaces(names)
	}
	name, err := parseSecretName(resource, p.Namespace)
	if err != nil {
		return nil
	}
	return name.places(p.Cluster, g.c.settings.primary())
}
