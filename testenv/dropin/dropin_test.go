package dropin

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/agent"
)

func istio(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: resource}
}

// TestImageOnly: a Deployment of istiod gets another image, and nothing else
// changes: its account keeps Istio's roles, its objects stay as Istio's charts and
// istiod left them. Everything works, and what the API servers refuse is what the
// roles do not give: Events everywhere; patching validation, which is updated
// instead; Leases in remotes, where a ConfigMap takes their place; the status of
// most of Istio's kinds, whose authors then hear nothing at the object.
func TestImageOnly(t *testing.T) {
	for _, release := range []struct {
		name     string
		allowed  rights
		enforced bool // istiod had validation refuse
		refused  map[string]map[string]int
	}{
		{"newest", rights{controlRights(), ownRights(), readerRights(true)}, true, map[string]map[string]int{
			"east": {"POST events": 1, "PATCH validatingwebhookconfigurations": 1, "PATCH destinationrules/status": 1, "PUT destinationrules/status": 1},
			"west": {"GET leases": 2},
		}},
		// Before releases 1.14 and 1.25 there were no Leases and no addresses of hosts.
		{"older", rights{without(controlRights(), "serviceentries/status"), without(ownRights(), "leases"), readerRights(true)}, false, map[string]map[string]int{
			"east": {"POST events": 1, "PATCH validatingwebhookconfigurations": 1, "GET leases": 5, "PATCH serviceentries/status": 1,
				"PATCH destinationrules/status": 1, "PUT destinationrules/status": 1},
			"west": {"GET leases": 2},
		}},
	} {
		t.Run(release.name, func(t *testing.T) {
			w := newWorld(t, release.allowed, release.enforced)
			p := w.start()
			w.bundlesAreTaken()
			w.remoteIsRead(p)
			w.injects()
			w.validates()
			w.certifies(p)
			w.writesAddresses(release.refused["east"]["PATCH serviceentries/status"] == 0)
			w.tellsBrokenSecret(p)
			w.tellsPoison(p)
			w.followsRoot(p)
			w.leavesWhatOthersKeep(p)
			require.Empty(t, p.said("  error  "))
			for cluster, want := range release.refused {
				require.Equal(t, want, w.refused(cluster), "what the API server of %s refused", cluster)
			}
			require.Len(t, p.said("Events are not written"), 1)
			require.Len(t, p.said("webhook configurations are written by update"), 1)
			for _, name := range []string{"JWT_POLICY", "PILOT_ENABLE_ANALYSIS"} {
				require.Len(t, p.said(name), 1, "a variable without meaning is named once")
			}
			p.halt()
			w.locksAreGivenBack()
		})
	}
}

// bundles are those of all webhooks of a cluster, by object and webhook.
func (w *world) bundles(cluster string) map[string]string {
	w.t.Helper()
	out := map[string]string{}
	api := w.clusters[cluster].Client().AdmissionregistrationV1()
	injection, err := api.MutatingWebhookConfigurations().List(w.ctx, metav1.ListOptions{})
	require.NoError(w.t, err)
	for _, o := range injection.Items {
		for _, h := range o.Webhooks {
			out[o.Name+" "+h.Name] = string(h.ClientConfig.CABundle)
		}
	}
	validation, err := api.ValidatingWebhookConfigurations().List(w.ctx, metav1.ListOptions{})
	require.NoError(w.t, err)
	for _, o := range validation.Items {
		for _, h := range o.Webhooks {
			out[o.Name+" "+h.Name] = string(h.ClientConfig.CABundle)
		}
	}
	return out
}

// followed waits until roots are in all webhooks and root ConfigMaps of all clusters.
func (w *world) followed(want func(roots string) bool) {
	w.t.Helper()
	for name, c := range w.clusters {
		w.eventually("all bundles of cluster "+name+" follow the roots", func() bool {
			for _, text := range w.bundles(name) {
				if !want(text) {
					return false
				}
			}
			return true
		})
		w.eventually("the root ConfigMaps of cluster "+name+" follow the roots", func() bool {
			for _, namespace := range []string{system, "shop", "default"} {
				o, err := c.Client().CoreV1().ConfigMaps(namespace).Get(w.ctx, ca.RootConfigMap, metav1.GetOptions{})
				if err != nil || !want(o.Data["root-cert.pem"]) {
					return false
				}
			}
			return true
		})
	}
}

// bundlesAreTaken: the root that istiod signed is the mesh's.
func (w *world) bundlesAreTaken() {
	w.t.Helper()
	require.Len(w.t, w.bundles("east"), 4)
	w.followed(func(roots string) bool { return roots == w.root })
}

// remoteIsRead: the remote secret that was there leads to a synced cluster.
func (w *world) remoteIsRead(p *plane) {
	w.t.Helper()
	w.eventually("cluster west is synced", func() bool {
		_, body := p.fetch("http", "/debug/clusterz")
		var list []struct {
			ID         string `json:"id"`
			SyncStatus string `json:"syncStatus"`
		}
		_ = json.Unmarshal(body, &list)
		return slices.ContainsFunc(list, func(c struct {
			ID         string `json:"id"`
			SyncStatus string `json:"syncStatus"`
		}) bool {
			return c.ID == "west" && c.SyncStatus == "synced"
		})
	})
}

// injects: pods of both clusters get a proxy from the templates that were there.
func (w *world) injects() {
	w.t.Helper()
	for cluster, c := range w.clusters {
		var got *corev1.Pod
		var err error
		w.eventually("a pod is made in cluster "+cluster, func() bool {
			got, err = c.Client().CoreV1().Pods("shop").Create(w.ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"app": "web"}},
				Spec:       corev1.PodSpec{ServiceAccountName: "web", Containers: []corev1.Container{{Name: "app", Image: "app"}}}}, metav1.CreateOptions{})
			return err == nil
		})
		require.Equal(w.t, "istiod", got.Annotations["left.example.com/by"], "the template that was there")
		i := slices.IndexFunc(got.Spec.Containers, func(c corev1.Container) bool { return c.Name == "istio-proxy" })
		require.GreaterOrEqual(w.t, i, 0)
		proxy := got.Spec.Containers[i]
		require.Equal(w.t, "registry.example.com/mesh/proxyv2:1.2.3", proxy.Image)
		require.Equal(w.t, []string{"proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local"}, proxy.Args)
		require.Contains(w.t, proxy.Env, corev1.EnvVar{Name: "ISTIO_META_CLUSTER_ID", Value: cluster})
	}
}

// validates: an object that is invalid is refused by all of the webhooks, and
// they refuse also what they cannot check.
func (w *world) validates() {
	w.t.Helper()
	api := w.clusters["east"].Client().AdmissionregistrationV1().ValidatingWebhookConfigurations()
	for _, name := range []string{validator, defaultHook} {
		w.eventually(name+" is enforced", func() bool {
			o, err := api.Get(w.ctx, name, metav1.GetOptions{})
			return err == nil && *o.Webhooks[0].FailurePolicy == admissionv1.Fail
		})
	}
	gateways := w.clusters["east"].Dynamic().Resource(istio("gateways")).Namespace("shop")
	for _, labels := range []map[string]any{nil, {"istio.io/rev": "default"}} {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
			"metadata": map[string]any{"name": "bad", "namespace": "shop", "labels": labels}, "spec": map[string]any{}}}
		w.eventually("an invalid object is refused", func() bool {
			_, err := gateways.Create(w.ctx, o, metav1.CreateOptions{DryRun: []string{"All"}})
			return err != nil && strings.Contains(err.Error(), "denied the request")
		})
	}
}

// certifies: a pod that trusts the ConfigMap that istiod left gets a certificate
// under istiod's root.
func (w *world) certifies(p *plane) {
	w.t.Helper()
	for cluster, c := range w.clusters {
		token, err := c.Token(w.ctx, "shop", "web", "istio-ca")
		require.NoError(w.t, err)
		a, err := agent.Dial(agent.Config{Address: p.addr("secure ADS and CA"), Roots: []byte(w.root), Token: token, Cluster: cluster})
		require.NoError(w.t, err)
		issued, err := a.Certificate(w.ctx, agent.CSR{ECDSA: true})
		require.NoError(w.t, err, "cluster %s", cluster)
		require.NoError(w.t, a.Close())
		roots := x509.NewCertPool()
		require.True(w.t, roots.AppendCertsFromPEM([]byte(w.root)))
		block, _ := pem.Decode([]byte(issued.Chain[0]))
		leaf, err := x509.ParseCertificate(block.Bytes)
		require.NoError(w.t, err)
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		require.NoError(w.t, err)
		require.Equal(w.t, "spiffe://cluster.local/ns/shop/sa/web", leaf.URIs[0].String())
	}
}

// writesAddresses: a host without an address has one in the status of its entry,
// where that is allowed.
func (w *world) writesAddresses(allowed bool) {
	w.t.Helper()
	entries := w.clusters["east"].Dynamic().Resource(istio("serviceentries")).Namespace("shop")
	_, err := entries.Create(w.ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
		"metadata": map[string]any{"name": "outside", "namespace": "shop"},
		"spec": map[string]any{"hosts": []any{"outside.example.com"}, "resolution": "DNS",
			"ports": []any{map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}}}}}, metav1.CreateOptions{})
	require.NoError(w.t, err)
	if !allowed {
		w.eventually("writing is refused", func() bool { return w.refused("east")["PATCH serviceentries/status"] > 0 })
		return
	}
	w.eventually("the host has an address", func() bool {
		o, err := entries.Get(w.ctx, "outside", metav1.GetOptions{})
		require.NoError(w.t, err)
		list, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
		return len(list) > 0
	})
}

// tellsBrokenSecret: what an Event would say is in the log.
func (w *world) tellsBrokenSecret(p *plane) {
	w.t.Helper()
	for _, name := range []string{"broken", "as-broken"} {
		w.create(w.clusters["east"].Client().CoreV1().Secrets(system).Create(w.ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: multicluster.SecretPrefix + name, Labels: map[string]string{multicluster.SecretLabel: "true"}},
			Data:       map[string][]byte{name: []byte("no kubeconfig")}}, metav1.CreateOptions{}))
		w.eventually("the refusal is in the log", func() bool { return len(p.said(multicluster.SecretPrefix+name)) > 0 })
	}
	w.eventually("an Event was tried", func() bool { return w.refused("east")["POST events"] > 0 })
}

// tellsPoison: what may not be written to an object is named to the operator, once.
func (w *world) tellsPoison(p *plane) {
	w.t.Helper()
	w.eventually("the right that is missing is named", func() bool { return len(p.said("allow patch on destinationrules/status")) == 1 })
	_, text := p.fetch("monitoring", "/debug/problems")
	require.Contains(w.t, string(text), "spec.subsets[0].name")
}

// followsRoot: an operator puts another root into cacerts; every bundle and every
// root ConfigMap has both while the mesh moves.
func (w *world) followsRoot(p *plane) {
	w.t.Helper()
	dir := w.t.TempDir()
	_, err := ca.MakeRoot(ca.RootOptions{Dir: dir + "/root", CommonName: "another"})
	require.NoError(w.t, err)
	_, err = ca.MakeIntermediate(ca.IntermediateOptions{RootDir: dir + "/root", Dir: dir + "/east", Cluster: "east"})
	require.NoError(w.t, err)
	data := map[string][]byte{}
	for _, name := range []string{"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"} {
		data[name], err = os.ReadFile(filepath.Join(dir, "east", name))
		require.NoError(w.t, err)
	}
	w.create(w.clusters["east"].Client().CoreV1().Secrets(system).Create(w.ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ca.PluggedInSecret}, Data: data}, metav1.CreateOptions{}))
	w.followed(func(roots string) bool {
		return strings.Contains(roots, strings.TrimSpace(w.root)) && strings.Contains(roots, strings.TrimSpace(string(data["root-cert.pem"])))
	})
	w.validates() // the API server still takes us for who we are
	require.Equal(w.t, 200, p.get("http", "/ready"))
}

// leavesWhatOthersKeep: a bundle that somebody else writes into a validating
// configuration, which we may update only, is told once and left alone; so is a
// webhook in it that is not ours.
func (w *world) leavesWhatOthersKeep(p *plane) {
	w.t.Helper()
	api := w.clusters["east"].Client().AdmissionregistrationV1().ValidatingWebhookConfigurations()
	set := func(bundle string) {
		w.t.Helper()
		o, err := api.Get(w.ctx, validator, metav1.GetOptions{})
		require.NoError(w.t, err)
		o.Webhooks[0].ClientConfig.CABundle = []byte(bundle)
		w.create(api.Update(w.ctx, o, metav1.UpdateOptions{FieldManager: "cert-manager"}))
	}
	failures := `webhook_patch_failures_total{cluster="east",name="` + validator + `",reason="conflict"} 1`
	set(w.root)
	w.eventually("the conflict is told", func() bool {
		_, text := p.fetch("monitoring", "/metrics")
		return strings.Contains(string(text), failures)
	})
	w.eventually("it is in the log", func() bool { return len(p.said("cert-manager keeps")) == 1 })
	require.Equal(w.t, w.root, w.bundles("east")[validator+" rev.validation.istio.io"])
	set("")
	w.followed(func(roots string) bool { return roots != "" && roots != w.root })
	require.Len(w.t, p.said("cert-manager keeps"), 1)
}

// locksAreGivenBack: whoever comes next need not wait, whatever kind of lock it is.
func (w *world) locksAreGivenBack() {
	w.t.Helper()
	seen := map[string]bool{}
	for name, c := range w.clusters {
		leases, err := c.Client().CoordinationV1().Leases(system).List(w.ctx, metav1.ListOptions{})
		require.NoError(w.t, err)
		for _, l := range leases.Items {
			seen[name+" "+l.Name] = l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == ""
		}
		locks, err := c.Client().CoreV1().ConfigMaps(system).List(w.ctx, metav1.ListOptions{})
		require.NoError(w.t, err)
		for _, o := range locks.Items {
			if text, ok := o.Annotations["control-plane.alpha.kubernetes.io/leader"]; ok {
				seen[name+" "+o.Name] = strings.Contains(text, `"holderIdentity":""`)
			}
		}
	}
	require.Equal(w.t, []string{"east isthmus-config-status", "east isthmus-gateway-status", "east isthmus-remote-tokens", "east isthmus-root-cert", "east isthmus-webhooks",
		"west isthmus-root-cert", "west isthmus-webhooks"}, slices.Sorted(maps.Keys(seen)))
	require.NotContains(w.t, slices.Collect(maps.Values(seen)), false, "%v", seen)
}
