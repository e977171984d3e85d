package serve

import (
	"fmt"
	"slices"

	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi/status"
)

// gatewayParts run what the Kubernetes Gateway API wants of its implementations
// beside what proxies are told: the status of its objects. Nothing without
// Kubernetes.
func (c *Control) gatewayParts() ([]part, error) {
	if c.kube == nil {
		return nil, nil
	}
	client, err := dynamic.NewForConfig(c.kube.rest)
	if err != nil {
		return nil, fmt.Errorf("make client of the primary cluster: %w", err)
	}
	log := c.log.Named("gateways")
	w, err := status.New(status.Config{Dynamic: client, Client: c.kube.client, Store: c.store, Log: log,
		Elect: ca.LeaseElector(ca.ElectionConfig{Client: c.kube.client, Cluster: c.settings.primary(), Namespace: c.settings.Namespace,
			Name: status.LeaseName(c.settings.Revision), Replica: c.settings.PodName, Logger: log, Report: c.reportElection})})
	if err != nil {
		return nil, err
	}
	return []part{{"status of gateways", c.onceReady(w.Run)}}, nil
}

// mayHave reports whether gateways of a namespace may have a Secret: one of their
// own namespace, or one that a listener of theirs names and a ReferenceGrant
// allows.
func (c *Control) mayHave(namespace string, secret gatewayapi.Name) bool {
	if secret.Namespace == namespace {
		return true
	}
	return slices.ContainsFunc(c.store.Catalog().Objects(mesh.KindGateway), func(o *mesh.Object) bool {
		b, ok := o.Value.(*gatewayapi.Binding)
		return ok && b.Namespace == namespace && slices.Contains(b.Credentials, secret)
	})
}
