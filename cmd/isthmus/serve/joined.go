package serve

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// newRenewer renews the tokens of remote secrets; nil if there are none to
// renew, because kubeconfigs come from files.
func (k *kubeWorld) newRenewer() (*multicluster.Renewer, error) {
	s := &k.c.settings
	if s.KubeconfigDir != "" {
		return nil, nil
	}
	options, err := multicluster.ParseOptions(s.InsecureKubeconfig)
	if err != nil {
		return nil, err
	}
	secrets, err := k.secretsClient()
	if err != nil {
		return nil, err
	}
	if secrets == nil {
		secrets = k.client
	}
	log := k.c.log.Named("tokens")
	return multicluster.NewRenewer(multicluster.RenewerConfig{
		Secrets: secrets, Namespace: s.remoteNamespace(), Options: options,
		Elect: ca.LeaseElector(ca.ElectionConfig{Client: secrets, Cluster: s.primary(), Namespace: s.remoteNamespace(),
			Name: multicluster.RenewalLease, Replica: s.PodName, Logger: log, Report: k.c.reportElection}),
		Events: k.recorder, Log: log, Metrics: k.c.metrics, Clock: s.Security.Clock,
	})
}

// tokens are the tokens of remote secrets that end.
func (c *Control) tokens() []multicluster.Token {
	if c.kube == nil || c.kube.renewer == nil {
		return nil
	}
	return c.kube.renewer.Tokens()
}

// reportElection puts on record that this replica may not stand for election
// somewhere, so that what the elected one writes is not written.
func (c *Control) reportElection(about mesh.ObjectRef, problem string) {
	if problem == "" {
		c.problems.Clear(about)
		return
	}
	c.problems.Set(about, "", problem)
}

// reportWebhook puts a webhook configuration that is not in order on record, and
// tells with an Event where users look: at the cluster's remote secret, or at
// the Service of the control plane. API servers take no Events of namespaces
// about objects that have none.
func (c *Control) reportWebhook(about mesh.ObjectRef, problem string) {
	if about.Kind == "Lease" {
		c.reportElection(about, problem)
		return
	}
	if problem == "" {
		c.problems.Clear(about)
		return
	}
	if !c.problems.Set(about, "caBundle", problem) || c.kube == nil {
		return
	}
	where := &corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: c.settings.Namespace, Name: "istiod"}
	if r := c.settings.Revision; r != "" && r != "default" {
		where.Name += "-" + r
	}
	for _, s := range c.world.clusters() {
		if s.ID == about.Cluster && !s.Primary {
			if namespace, name, ok := strings.Cut(s.SecretName, "/"); ok {
				where.Kind, where.Namespace, where.Name = "Secret", namespace, name
			}
		}
	}
	c.kube.recorder.Event(where, corev1.EventTypeWarning, "WebhookNotPatched", fmt.Sprintf("%s: %s", about, problem))
}
