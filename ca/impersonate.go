package ca

import (
	"errors"
	"fmt"
	"strings"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// NodeAccount is a service account whose pods may ask for certificates in the
// name of the other pods of their node (node proxies such as ztunnel).
type NodeAccount struct{ Namespace, ServiceAccount string }

// ParseNodeAccounts reads the form of CA_TRUSTED_NODE_ACCOUNTS: namespace/name,
// separated by commas. An empty list trusts nobody.
func ParseNodeAccounts(s string) ([]NodeAccount, error) {
	var out []NodeAccount
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		ns, sa, ok := strings.Cut(part, "/")
		if !ok || ns == "" || sa == "" || strings.Contains(sa, "/") {
			return nil, fmt.Errorf("parse trusted node accounts: %q is not NAMESPACE/SERVICE-ACCOUNT", part)
		}
		out = append(out, NodeAccount{ns, sa})
	}
	return out, nil
}

// PodFacts are what is known of a pod from the watch of its cluster.
type PodFacts struct {
	UID, Node, ServiceAccount string
	// Live is false for pods that have finished or are being deleted.
	Live bool
}

// PodLookup answers from what is known of the joined clusters, without calls.
type PodLookup interface {
	// Pod returns a pod of a cluster by its name.
	Pod(cluster mesh.ClusterID, namespace, name string) (PodFacts, bool)
	// RunsOnNode reports whether a live pod of the service account is on the
	// node of the cluster.
	RunsOnNode(cluster mesh.ClusterID, node, namespace, serviceAccount string) bool
}

// errImpersonation is all that a caller hears; the reason goes to the log.
var errImpersonation = errors.New("not allowed to ask for this identity")

// impersonation decides whether a node proxy may have the identity of another
// pod.
type impersonation struct {
	trusted map[NodeAccount]bool
	pods    PodLookup
}

// check returns the identity to issue, or why not. The caller must run now, as
// the very pod that its token names, on the node that it names, in the cluster
// that vouched for it; and a pod of the wanted identity must be on that node.
func (i impersonation) check(c authn.Caller, wanted string) (mesh.Identity, error) {
	id, err := mesh.ParseIdentity(wanted)
	if err != nil {
		return mesh.Identity{}, err
	}
	if err := authn.CheckIdentity(id); err != nil {
		return mesh.Identity{}, err
	}
	switch {
	case i.pods == nil || !i.trusted[NodeAccount{c.Identity.Namespace, c.Identity.ServiceAccount}]:
		return mesh.Identity{}, errors.New("the caller is no trusted node account")
	case c.Source != authn.SourceToken || c.Cluster == "" || c.PodName == "" || c.PodUID == "" || c.Node == "":
		return mesh.Identity{}, errors.New("the caller's credential is no token bound to a pod and a node")
	case id.TrustDomain != c.Identity.TrustDomain:
		return mesh.Identity{}, fmt.Errorf("the caller is of trust domain %s", c.Identity.TrustDomain)
	}
	pod, ok := i.pods.Pod(c.Cluster, c.Identity.Namespace, c.PodName)
	switch {
	case !ok || !pod.Live:
		return mesh.Identity{}, errors.New("the caller's pod does not run")
	case pod.UID != c.PodUID:
		return mesh.Identity{}, fmt.Errorf("the caller's pod was replaced by %s", pod.UID)
	case pod.Node != c.Node:
		return mesh.Identity{}, fmt.Errorf("the caller's pod is on node %q", pod.Node)
	case pod.ServiceAccount != c.Identity.ServiceAccount:
		return mesh.Identity{}, fmt.Errorf("the caller's pod runs as %q", pod.ServiceAccount)
	case !i.pods.RunsOnNode(c.Cluster, c.Node, id.Namespace, id.ServiceAccount):
		return mesh.Identity{}, errors.New("no pod of that identity is on the caller's node")
	}
	return id, nil
}
