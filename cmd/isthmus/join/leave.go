package join

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/webhooks"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
)

// configLabel marks what control planes write for agents.
const configLabel = "istio.io/config=true"

// Leave undoes what Join did, in both clusters, and what the primary has written
// into the remote since. It removes what is marked as ours and nothing else, and
// may be repeated.
func Leave(ctx context.Context, o Options) error {
	b, err := start(o)
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	if err := b.lookAtLeaving(ctx); err != nil {
		return fmt.Errorf("let cluster %s leave: %w", b.Name, err)
	}
	// The primary forgets first, then loses its rights: it cannot write again what
	// is removed after.
	steps := []func(context.Context) error{b.dropSecret}
	if b.remote != nil {
		steps = append(steps, b.uninstall, b.awaitNoRights, b.dropWritten, b.unmarkNamespace)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return fmt.Errorf("let cluster %s leave: %w", b.Name, err)
		}
	}
	return nil
}

// removalNeeds are the rights of leaving in the remote.
func (b *both) removalNeeds() []install.Need {
	out := append(install.RemovalNeeds(b.Namespace),
		install.Need{Verb: "list", Resource: "configmaps"}, install.Need{Verb: "delete", Resource: "configmaps"},
		install.Need{Verb: "create", Group: "authorization.k8s.io", Resource: "subjectaccessreviews"})
	for _, verb := range []string{"get", "delete"} {
		out = append(out, install.Need{Verb: verb, Group: "coordination.k8s.io", Resource: "leases", Namespace: b.Namespace},
			install.Need{Verb: verb, Resource: "secrets", Name: b.tokenSecretName(), Namespace: b.Namespace})
	}
	for _, verb := range []string{"get", "patch", "delete"} {
		out = append(out, install.Need{Verb: verb, Resource: "namespaces", Name: b.Namespace})
	}
	return out
}

// lookAtLeaving finds out whether this is the cluster that is to leave, and
// whether we may.
func (b *both) lookAtLeaving(ctx context.Context) error {
	here := &findings{to: b.primary}
	if err := here.needs(ctx, b.primaryNeeds()); err != nil {
		return err
	}
	if here.failed {
		return fmt.Errorf("cluster %s: %w", b.Primary.Name, ErrPreflight)
	}
	if err := b.findPrimaryID(ctx, here); err != nil {
		return err
	}
	if here.failed {
		return fmt.Errorf("cluster %s: %w", b.Primary.Name, ErrPreflight)
	}
	if b.remote == nil {
		return nil
	}
	there := &findings{to: b.remote}
	if err := there.needs(ctx, append(b.removalNeeds(), install.Need{Verb: "get", Resource: "namespaces"})); err != nil {
		return err
	}
	if there.failed {
		return fmt.Errorf("cluster %s: %w", b.Remote.Name, ErrPreflight)
	}
	ns, err := b.Remote.Client().CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read namespace kube-system of cluster %s: %w", b.Remote.Name, err)
	}
	b.uid = string(ns.UID)
	return nil
}

// dropSecret deletes the remote secret.
func (b *both) dropSecret(ctx context.Context) error {
	api := b.Primary.Client().CoreV1().Secrets(b.Namespace)
	what := fmt.Sprintf("Secret %s/%s", b.Namespace, b.secretName())
	have, err := api.Get(ctx, b.secretName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		b.primary.Say("absent", what)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read secret %s/%s of cluster %s: %w", b.Namespace, b.secretName(), b.Primary.Name, err)
	}
	if have.Labels[JoinedLabel] != b.Name && !b.Force {
		return fmt.Errorf("%s of cluster %s was not made by join: delete it yourself, or with --force", what, b.Primary.Name)
	}
	if uid := have.Annotations[UIDAnnotation]; b.remote != nil && uid != "" && uid != b.uid {
		return fmt.Errorf("%s is that of another cluster than %s: name the right one with --context, or say --remote-gone", what, b.Remote.Name)
	}
	err = api.Delete(ctx, have.Name, b.deletion(have))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete secret %s/%s of cluster %s: %w", b.Namespace, have.Name, b.Primary.Name, err)
	}
	b.primary.Say(b.primary.Did("deleted"), what)
	return nil
}

// deletion deletes the object that was looked at, and no other of its name.
func (b *both) deletion(o metav1.Object) metav1.DeleteOptions {
	uid := o.GetUID()
	out := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	if b.DryRun {
		out.DryRun = []string{metav1.DryRunAll}
	}
	return out
}

// uninstall removes the chart's objects, and a token without an end.
func (b *both) uninstall(ctx context.Context) error {
	if err := b.remote.Uninstall(ctx, b.release, b.Namespace); err != nil && !errors.Is(err, install.ErrNothing) {
		return err
	}
	api := b.Remote.Client().CoreV1().Secrets(b.Namespace)
	s, err := api.Get(ctx, b.tokenSecretName(), metav1.GetOptions{})
	if err == nil && s.Type == corev1.SecretTypeServiceAccountToken {
		err = b.drop("Secret "+b.Namespace+"/"+s.Name, api.Delete(ctx, s.Name, b.deletion(s)))
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}

// drop says that something was deleted, unless it was not.
func (b *both) drop(what string, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("delete %s of cluster %s: %w", what, b.Remote.Name, err)
	}
	b.remote.Say(b.remote.Did("deleted"), what)
	return nil
}

// awaitNoRights waits until the primary cannot write any more.
func (b *both) awaitNoRights(ctx context.Context) error {
	if b.DryRun {
		return nil
	}
	return b.remote.Until(ctx, func(ctx context.Context) (string, error) {
		allowed, err := b.readerMay(ctx)
		if err != nil || !allowed {
			return "", err
		}
		return "rights of service account " + b.Namespace + "/" + b.account() + " to end; if others grant it rights, take them away", nil
	})
}

// dropWritten removes what the primary has written by itself: roots and Leases.
// Roots stay where other control planes write them too.
func (b *both) dropWritten(ctx context.Context) error {
	client := b.Remote.Client()
	ns, err := client.CoreV1().Namespaces().Get(ctx, b.Namespace, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read namespace %s of cluster %s: %w", b.Namespace, b.Remote.Name, err)
	}
	if err == nil {
		others := slices.DeleteFunc(namesIn(ns.Annotations[controlPlaneAnnotation]), func(n string) bool { return n == b.primaryID })
		if len(others) > 0 {
			b.remote.Say("kept", fmt.Sprintf("ConfigMaps %s: the control planes of %s write them too", ca.RootConfigMap, strings.Join(others, ", ")))
			return nil
		}
	}
	list, err := client.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{LabelSelector: configLabel})
	if err != nil {
		return fmt.Errorf("list ConfigMaps of cluster %s: %w", b.Remote.Name, err)
	}
	for i := range list.Items {
		o := &list.Items[i]
		if o.Name != ca.RootConfigMap && o.Name != ca.CRLConfigMap {
			continue
		}
		if err := b.drop("ConfigMap "+o.Namespace+"/"+o.Name, client.CoreV1().ConfigMaps(o.Namespace).Delete(ctx, o.Name, b.deletion(o))); err != nil {
			return err
		}
	}
	for _, name := range []string{ca.RootLease, webhooks.LeaseName(b.Revision)} {
		o, err := client.CoordinationV1().Leases(b.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			err = b.drop("Lease "+b.Namespace+"/"+name, client.CoordinationV1().Leases(b.Namespace).Delete(ctx, name, b.deletion(o)))
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete Lease %s/%s of cluster %s: %w", b.Namespace, name, b.Remote.Name, err)
		}
	}
	return nil
}

// unmarkNamespace takes back what join wrote into the system namespace, and
// removes the namespace if join made it and nobody else has put anything in.
func (b *both) unmarkNamespace(ctx context.Context) error {
	api := b.Remote.Client().CoreV1().Namespaces()
	have, err := api.Get(ctx, b.Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read namespace %s of cluster %s: %w", b.Namespace, b.Remote.Name, err)
	}
	if have.Annotations[MadeAnnotation] == b.Name && !b.DryRun {
		left, err := b.Remote.Left(ctx, b.Namespace)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return b.drop("Namespace "+b.Namespace, api.Delete(ctx, b.Namespace, b.deletion(have)))
		}
		b.remote.Say("kept", fmt.Sprintf("Namespace %s, which holds %s", b.Namespace, strings.Join(left, ", ")))
	}
	if !slices.ContainsFunc(have.ManagedFields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == fieldManager }) {
		return nil
	}
	annotations := map[string]string{}
	others := slices.DeleteFunc(namesIn(have.Annotations[controlPlaneAnnotation]), func(n string) bool { return n == b.primaryID })
	if len(others) > 0 {
		annotations[controlPlaneAnnotation] = strings.Join(others, ",")
	}
	return b.applyNamespace(ctx, have, nil, annotations)
}
