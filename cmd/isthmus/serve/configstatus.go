package serve

import (
	"fmt"

	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config/status"
)

// statusParts run what tells the authors of Istio's objects, in their status, that
// they are not served as written. Nothing without Kubernetes.
func (c *Control) statusParts() ([]part, error) {
	if c.kube == nil || c.settings.NoStatus {
		return nil, nil
	}
	client, err := dynamic.NewForConfig(c.kube.rest)
	if err != nil {
		return nil, fmt.Errorf("make client of the primary cluster: %w", err)
	}
	log := c.log.Named("status")
	w, err := status.New(status.Config{
		Client: client, Cluster: c.settings.primary(), Revision: c.settings.Revision, Problems: c.problems, Log: log,
		Generation: func(k mesh.ObjectKey) int64 {
			if o := c.store.Catalog().Object(k); o != nil {
				return o.Generation
			}
			return 0
		},
		Elect: ca.LeaseElector(ca.ElectionConfig{Client: c.kube.client, Cluster: c.settings.primary(), Namespace: c.settings.Namespace,
			Name: status.LeaseName(c.settings.Revision), Replica: c.settings.PodName, Logger: log, Report: c.reportElection}),
	})
	if err != nil {
		return nil, err
	}
	return []part{{"status of configuration", c.onceReady(w.Run)}}, nil
}
