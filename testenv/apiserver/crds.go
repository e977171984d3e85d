package apiserver

import (
	"context"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// definition is one row of the tables below: a kind, how its resource is
// called, and the versions in which it is served, the stored one first.
type definition struct {
	kind, plural string
	versions     []string
	cluster      bool // not namespaced
}

// InstallIstioCRDs makes the server take the objects of Istio and of the
// Gateway API. The definitions check nothing and keep every field; they have
// a status subresource. It returns when the kinds are served.
func (c *Cluster) InstallIstioCRDs(ctx context.Context) error {
	var objects []*unstructured.Unstructured
	for group, kinds := range istioKinds() {
		for _, kind := range kinds {
			objects = append(objects, kind.object(group))
		}
	}
	return c.ApplyObjects(ctx, objects...)
}

// istioKinds returns the kinds by their API group.
func istioKinds() map[string][]definition {
	var (
		network  = []string{"v1", "v1beta1", "v1alpha3"}
		security = []string{"v1", "v1beta1"}
		gateway  = []string{"v1", "v1beta1"}
	)
	return map[string][]definition{
		"networking.istio.io": {
			{kind: "Gateway", plural: "gateways", versions: network},
			{kind: "VirtualService", plural: "virtualservices", versions: network},
			{kind: "DestinationRule", plural: "destinationrules", versions: network},
			{kind: "ServiceEntry", plural: "serviceentries", versions: network},
			{kind: "WorkloadEntry", plural: "workloadentries", versions: network},
			{kind: "WorkloadGroup", plural: "workloadgroups", versions: network},
			{kind: "Sidecar", plural: "sidecars", versions: network},
			{kind: "EnvoyFilter", plural: "envoyfilters", versions: []string{"v1alpha3"}},
			{kind: "ProxyConfig", plural: "proxyconfigs", versions: []string{"v1beta1"}},
		},
		"security.istio.io": {
			{kind: "PeerAuthentication", plural: "peerauthentications", versions: security},
			{kind: "AuthorizationPolicy", plural: "authorizationpolicies", versions: security},
			{kind: "RequestAuthentication", plural: "requestauthentications", versions: security},
		},
		"telemetry.istio.io": {
			{kind: "Telemetry", plural: "telemetries", versions: []string{"v1", "v1alpha1"}},
		},
		"extensions.istio.io": {
			{kind: "WasmPlugin", plural: "wasmplugins", versions: []string{"v1alpha1"}},
		},
		"gateway.networking.k8s.io": {
			{kind: "GatewayClass", plural: "gatewayclasses", versions: gateway, cluster: true},
			{kind: "Gateway", plural: "gateways", versions: gateway},
			{kind: "HTTPRoute", plural: "httproutes", versions: gateway},
		},
	}
}

// object renders the definition.
func (d definition) object(group string) *unstructured.Unstructured {
	scope := "Namespaced"
	if d.cluster {
		scope = "Cluster"
	}
	var versions []any
	for i, name := range d.versions {
		versions = append(versions, map[string]any{
			"name": name, "served": true, "storage": i == 0,
			"schema": map[string]any{"openAPIV3Schema": map[string]any{
				"type": "object", "x-kubernetes-preserve-unknown-fields": true,
			}},
			"subresources": map[string]any{"status": map[string]any{}},
		})
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": kindCRD,
		"metadata": map[string]any{
			"name": d.plural + "." + group,
			// Groups below k8s.io must say how they were approved.
			"annotations": map[string]any{"api-approved.kubernetes.io": "unapproved, for tests"},
		},
		"spec": map[string]any{
			"group": group, "scope": scope, "versions": versions,
			"names": map[string]any{
				"kind": d.kind, "listKind": d.kind + "List",
				"plural": d.plural, "singular": strings.ToLower(d.kind),
			},
		},
	}}
}
