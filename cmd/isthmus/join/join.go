package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/webhooks"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// Join makes a cluster a remote of a primary. Both are looked at before either
// is changed. It may be repeated: what is there stays, what differs is changed.
func Join(ctx context.Context, o Options) error {
	b, err := start(o)
	if err != nil {
		return fmt.Errorf("join cluster: %w", err)
	}
	if b.remote == nil {
		return errors.New("join cluster: the remote is missing")
	}
	if err := b.look(ctx); err != nil {
		return fmt.Errorf("join cluster %s: %w", b.Name, err)
	}
	for _, step := range []func(context.Context) error{b.markNamespace, b.install, b.awaitRights, b.credentials, b.awaitPrimary} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("join cluster %s: %w", b.Name, err)
		}
	}
	return nil
}

// markNamespace makes the remote's system namespace, and says in it of which
// network the cluster is and who looks after it. The field manager is our own,
// so that leaving takes back just this.
func (b *both) markNamespace(ctx context.Context) error {
	api := b.Remote.Client().CoreV1().Namespaces()
	have, err := api.Get(ctx, b.Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		have, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("read namespace %s of cluster %s: %w", b.Namespace, b.Remote.Name, err)
	}
	labels, annotations := map[string]string{}, map[string]string{controlPlaneAnnotation: b.primaryID}
	if network := b.value("global.network"); network != "" {
		labels[networkLabel] = network
	}
	if have == nil || have.Annotations[MadeAnnotation] == b.Name {
		annotations[MadeAnnotation] = b.Name
	}
	if have != nil {
		annotations[controlPlaneAnnotation] = strings.Join(withName(have.Annotations[controlPlaneAnnotation], b.primaryID), ",")
	}
	return b.applyNamespace(ctx, have, labels, annotations)
}

// withName adds a name to a list with commas.
func withName(list, name string) []string {
	names := namesIn(list)
	if slices.Contains(names, name) || slices.Contains(names, "*") {
		return names
	}
	return append(names, name)
}

func namesIn(list string) []string {
	var out []string
	for _, n := range strings.Split(list, ",") {
		if n = strings.TrimSpace(n); n != "" {
			out = append(out, n)
		}
	}
	return out
}

// applyNamespace writes what is ours of the remote's system namespace.
func (b *both) applyNamespace(ctx context.Context, have *corev1.Namespace, labels, annotations map[string]string) error {
	patch, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": b.Namespace, "labels": labels, "annotations": annotations}})
	if err != nil {
		return fmt.Errorf("encode namespace %s: %w", b.Namespace, err)
	}
	force := true // preflight has looked at what others wrote
	options := metav1.PatchOptions{FieldManager: fieldManager, Force: &force}
	if b.DryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	got, err := b.Remote.Client().CoreV1().Namespaces().Patch(ctx, b.Namespace, types.ApplyPatchType, patch, options)
	if err != nil {
		return fmt.Errorf("apply namespace %s in cluster %s: %w", b.Namespace, b.Remote.Name, err)
	}
	b.remote.Say(b.did(have != nil, have != nil && have.ResourceVersion == got.ResourceVersion, b.remote), "Namespace "+b.Namespace)
	return nil
}

// did says what became of an object.
func (b *both) did(was, same bool, i *install.Installer) string {
	switch {
	case same:
		return "unchanged"
	case was:
		return i.Did("changed")
	}
	return i.Did("created")
}

func (b *both) install(ctx context.Context) error { return b.remote.Carry(ctx, b.plan()) }

// awaitRights waits until the remote's API server decides by what was installed:
// the primary is not to begin with refusals.
func (b *both) awaitRights(ctx context.Context) error {
	if b.DryRun {
		return nil
	}
	return b.remote.Until(ctx, func(ctx context.Context) (string, error) {
		allowed, err := b.readerMay(ctx)
		if err != nil || allowed {
			return "", err
		}
		return "rights of service account " + b.Namespace + "/" + b.account() + " to be in force", nil
	})
}

// readerMay asks the remote whether the reader may read what it reads first.
func (b *both) readerMay(ctx context.Context) (bool, error) {
	answer, err := b.Remote.Client().AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "system:serviceaccount:" + b.Namespace + ":" + b.account(),
			Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + b.Namespace, "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask cluster %s for the rights of service account %s/%s: %w", b.Remote.Name, b.Namespace, b.account(), err)
	}
	return answer.Status.Allowed, nil
}

// credentials writes the remote secret, unless the one there is still good.
func (b *both) credentials(ctx context.Context) error {
	api := b.Primary.Client().CoreV1().Secrets(b.Namespace)
	have, err := api.Get(ctx, b.secretName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		have, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("read secret %s/%s of cluster %s: %w", b.Namespace, b.secretName(), b.Primary.Name, err)
	}
	what := fmt.Sprintf("Secret %s/%s", b.Namespace, b.secretName())
	if have != nil && b.good(ctx, have) {
		return b.weigh(ctx, have, what)
	}
	if b.DryRun {
		b.primary.Say(b.did(have != nil, false, b.primary), what)
		return nil
	}
	o := multicluster.RemoteSecretOptions{Client: b.Remote.Client(), RESTConfig: b.Remote.REST, Name: b.Name, ServiceAccount: b.account(),
		Namespace: b.Namespace, Server: b.Server, CAData: b.CAData, Allow: b.Allow}
	if !b.LongLived {
		o.TokenLifetime = b.TokenLifetime
	}
	want, err := multicluster.CreateRemoteSecret(ctx, o)
	if err != nil {
		return fmt.Errorf("in cluster %s: %w", b.Remote.Name, err)
	}
	maps.Copy(want.Labels, b.marks())
	want.Annotations[UIDAnnotation] = b.uid
	if weight, set := b.weight(have); set {
		want.Annotations[multicluster.WeightAnnotation] = weight
	}
	want.Data = map[string][]byte{}
	for key, text := range want.StringData {
		want.Data[key] = []byte(text)
	}
	want.StringData = nil
	patch, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("encode secret %s: %w", b.secretName(), err)
	}
	force := true // it is ours, or the user said so
	if _, err = api.Patch(ctx, b.secretName(), types.ApplyPatchType, patch, metav1.PatchOptions{FieldManager: install.FieldManager, Force: &force}); err != nil {
		return fmt.Errorf("apply secret %s/%s in cluster %s: %w", b.Namespace, b.secretName(), b.Primary.Name, err)
	}
	until := "its token has no end"
	if ends := want.Annotations[multicluster.ExpiryAnnotation]; ends != "" {
		until = "its token ends " + ends + ", the control plane renews it before"
	}
	b.primary.Say(b.did(have != nil, false, b.primary), what+": "+until)
	return nil
}

// weight is the annotation that a remote secret is to have: what was asked for,
// else what it has. Joining again must not end a drain.
func (b *both) weight(have *corev1.Secret) (string, bool) {
	if b.Weight != nil {
		return strconv.FormatUint(uint64(*b.Weight), 10), true
	}
	if have == nil {
		return "", false
	}
	text, set := have.Annotations[multicluster.WeightAnnotation]
	return text, set
}

// weigh gives a remote secret that is good the weight that was asked for.
func (b *both) weigh(ctx context.Context, have *corev1.Secret, what string) error {
	want, set := b.weight(have)
	if is, was := have.Annotations[multicluster.WeightAnnotation]; is == want && was == set {
		b.primary.Say("unchanged", what)
		return nil
	}
	if _, err := multicluster.WriteWeight(ctx, b.Primary.Client(), b.Namespace, mesh.ClusterID(b.Name), b.Weight, b.DryRun); err != nil {
		return fmt.Errorf("in cluster %s: %w", b.Primary.Name, err)
	}
	b.primary.Say(b.did(true, false, b.primary), what+": weight "+want)
	return nil
}

// marks are the labels by which a remote secret is known as made by join.
func (b *both) marks() map[string]string {
	return map[string]string{JoinedLabel: b.Name, manifests.ManagedByLabel: manifests.ManagedBy, manifests.InstanceLabel: b.release}
}

// good reports whether a remote secret is as it would be made now: ours, for the
// same server, with a token that the remote still takes for long enough.
func (b *both) good(ctx context.Context, have *corev1.Secret) bool {
	for k, v := range b.marks() {
		if have.Labels[k] != v {
			return false
		}
	}
	raw := have.Data[b.Name]
	cfg, err := multicluster.Sanitize(raw, b.Allow)
	server := b.Server
	if server == "" {
		server = b.Remote.REST.Host
	}
	if err != nil || have.Annotations[UIDAnnotation] != b.uid || have.Labels[multicluster.SecretLabel] != "true" || cfg.Host != server ||
		len(b.CAData) > 0 && string(cfg.CAData) != string(b.CAData) {
		return false
	}
	issued, expires, ends := multicluster.TokenExpiry(raw, b.Allow)
	if ends == b.LongLived || ends && b.Now().After(issued.Add(expires.Sub(issued)*3/4)) {
		return false
	}
	answer, err := b.Remote.Client().AuthenticationV1().TokenReviews().Create(ctx,
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: cfg.BearerToken}}, metav1.CreateOptions{})
	return err == nil && answer.Status.Authenticated && answer.Status.User.Username == "system:serviceaccount:"+b.Namespace+":"+b.account()
}

// awaitPrimary waits for the signs of a primary that has read the remote and
// looks after it: its roots are there, and API servers know them.
func (b *both) awaitPrimary(ctx context.Context) error {
	if b.DryRun || b.NoWait || b.value("reader.writes") == "false" {
		return nil
	}
	began := b.Now()
	err := b.remote.Until(ctx, b.signs)
	if err == nil {
		b.remote.Say("joined", fmt.Sprintf("the primary reads this cluster and has written its roots, after %s", b.Now().Sub(began).Round(100*time.Millisecond)))
	}
	return err
}

// signs says what is still missing, "" if nothing is.
func (b *both) signs(ctx context.Context) (string, error) {
	_, err := b.Remote.Client().CoreV1().ConfigMaps(b.Namespace).Get(ctx, ca.RootConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Sprintf("the primary %s to read this cluster and write ConfigMap %s/%s", b.primaryID, b.Namespace, ca.RootConfigMap), nil
	}
	if err != nil {
		return "", fmt.Errorf("read ConfigMap %s/%s of cluster %s: %w", b.Namespace, ca.RootConfigMap, b.Remote.Name, err)
	}
	list, err := b.Remote.Client().AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx,
		metav1.ListOptions{LabelSelector: manifests.InstanceLabel + "=" + b.release})
	if err != nil {
		return "", fmt.Errorf("read injection webhooks of cluster %s: %w", b.Remote.Name, err)
	}
	for _, c := range list.Items {
		for _, w := range c.Webhooks {
			if strings.HasSuffix(w.Name, webhooks.InjectionSuffix) && len(w.ClientConfig.CABundle) == 0 {
				return fmt.Sprintf("the primary %s to write its roots into MutatingWebhookConfiguration %s", b.primaryID, c.Name), nil
			}
		}
	}
	return "", nil
}
