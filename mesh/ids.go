// Package mesh holds the nouns of a service mesh that spans several Kubernetes
// clusters: clusters, networks, localities, services, endpoints, workloads,
// gateways, identities, proxies and the mesh-wide settings.
//
// Values are immutable once published, so they may be shared by every reader
// without locks or copies. The package does no I/O and knows neither
// Kubernetes clients nor xDS; translation into these values is the business of
// package registry and its sub-packages, translation out of them that of
// xds/build.
//
// A bare "cluster" is always a Kubernetes cluster. Envoy's clusters are called
// upstreams.
package mesh

import (
	"cmp"
	"strings"
)

// ClusterID names one Kubernetes cluster, as in ISTIO_META_CLUSTER_ID and as
// the key of a remote secret.
type ClusterID string

// NetworkID names a set of mutually routable addresses, as in the label
// topology.istio.io/network. Empty means unknown.
type NetworkID string

// CompareClusters puts the primary first, then orders by ID.
func CompareClusters(primary, a, b ClusterID) int {
	switch {
	case a == b:
		return 0
	case a == primary:
		return -1
	case b == primary, a > b:
		return 1
	}
	return -1
}

// Hostname is a fully qualified host name in lower case without a trailing
// dot, for example "reviews.shop.svc.cluster.local".
type Hostname string

// ClusterSetDomain is the domain of Services that clusters export to each other
// (Multi-Cluster Services API).
const ClusterSetDomain = "clusterset.local"

// InClusterSet reports whether the host is an exported Service.
func (h Hostname) InClusterSet() bool { return strings.HasSuffix(string(h), ".svc."+ClusterSetDomain) }

// ServiceKey identifies a service of the whole mesh. The same host name may be
// defined by several namespaces (ServiceEntry); Kubernetes Services of one
// name and namespace in several clusters share one key and are one service.
type ServiceKey struct {
	Namespace string   `json:"namespace"`
	Hostname  Hostname `json:"hostname"`
}

// String renders the key as namespace/hostname.
func (k ServiceKey) String() string { return k.Namespace + "/" + string(k.Hostname) }

// Compare orders keys by host name, then by namespace.
func (k ServiceKey) Compare(o ServiceKey) int {
	return cmp.Or(cmp.Compare(k.Hostname, o.Hostname), cmp.Compare(k.Namespace, o.Namespace))
}

// Locality says where something runs. Any suffix of the fields may be empty.
type Locality struct{ Region, Zone, SubZone string }

// ParseLocality reads the form "region/zone/subzone"; missing parts are empty.
func ParseLocality(s string) Locality {
	var l Locality
	l.Region, s, _ = strings.Cut(s, "/")
	l.Zone, l.SubZone, _ = strings.Cut(s, "/")
	return l
}

// String renders "region/zone/subzone" without trailing empty parts.
func (l Locality) String() string {
	return strings.TrimRight(l.Region+"/"+l.Zone+"/"+l.SubZone, "/")
}

// IsZero reports whether nothing is known about the locality.
func (l Locality) IsZero() bool { return l == Locality{} }

// Compare orders localities by region, zone and sub-zone.
func (l Locality) Compare(o Locality) int {
	return cmp.Or(cmp.Compare(l.Region, o.Region), cmp.Compare(l.Zone, o.Zone), cmp.Compare(l.SubZone, o.SubZone))
}

// ObjectRef names the object that something came from, for error messages,
// problem lists and the origin metadata of resources.
type ObjectRef struct {
	Cluster   ClusterID `json:"cluster"`
	Kind      string    `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
}

// String renders "Kind namespace/name in cluster ID".
func (r ObjectRef) String() string {
	name := r.Name
	if r.Namespace != "" {
		name = r.Namespace + "/" + r.Name
	}
	return r.Kind + " " + name + " in cluster " + string(r.Cluster)
}
