package serve

import (
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/mesh/inject"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi/deploy"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi/status"
)

// gatewayParts run what the Kubernetes Gateway API wants of its implementations
// beside what proxies are told: the status of its objects, and routers for
// Gateways. Nothing without Kubernetes.
func (c *Control) gatewayParts() ([]part, error) {
	if c.kube == nil {
		return nil, nil
	}
	client, err := dynamic.NewForConfig(c.kube.rest)
	if err != nil {
		return nil, fmt.Errorf("make client of the primary cluster: %w", err)
	}
	log := c.log.Named("gateways")
	cfg := status.Config{Dynamic: client, Client: c.kube.client, Store: c.store, Log: log,
		Elect: ca.LeaseElector(ca.ElectionConfig{Client: c.kube.client, Cluster: c.settings.primary(), Namespace: c.settings.Namespace,
			Name: status.LeaseName(c.settings.Revision), Replica: c.settings.PodName, Logger: log, Report: c.reportElection})}
	if c.settings.Gateways.Deploy {
		cfg.Routers, err = deploy.New(deploy.Config{Dynamic: client, Store: c.store, Primary: c.settings.primary(), Namespace: c.settings.Namespace,
			Revision: c.settings.Revision, CopyMetadata: c.settings.Gateways.CopyMetadata, Injects: c.injects, Events: c.kube.recorder, Log: log})
		if err != nil {
			return nil, err
		}
	}
	w, err := status.New(cfg)
	if err != nil {
		return nil, err
	}
	return []part{{"status of gateways", c.onceReady(w.Run)}}, nil
}

// injects says why a pod of a router would not get its proxy here; nil if it
// would. The tags are all names that namespaces and pods may ask for us by.
func (c *Control) injects(namespace string, labels map[string]string, tags []string, pod *corev1.Pod) error {
	if c.injection == nil {
		return errors.New("this control plane runs no injection webhook")
	}
	if d := inject.Selected(labels, pod.Labels, tags[0], tags[1:]...); !d.Inject {
		return fmt.Errorf("no webhook of revision %v is asked about pods of namespace %s: %s; change the labels of the Gateway or of the namespace so that one is", tags, namespace, d.Reason)
	}
	config := c.injection.config()
	if config == nil {
		return errors.New("there is no injection configuration that can be used: see /debug/inject")
	}
	if d := config.Decide(pod, namespace); !d.Inject {
		return errors.New(d.Reason)
	}
	if !slices.Contains(config.Templates(), deploy.Template) {
		return fmt.Errorf("the injection configuration has no template %q", deploy.Template)
	}
	return nil
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
