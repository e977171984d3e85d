package join

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// ErrPreflight says that a cluster is not fit; the findings have been told.
var ErrPreflight = errors.New("not ready; nothing was changed")

// findings are what was found out about one cluster.
type findings struct {
	to     *install.Installer
	failed bool
}

func (f *findings) add(list ...install.Finding) {
	for _, x := range list {
		f.to.Say(string(x.Level), fmt.Sprintf("%-12s %s", x.Check, x.Text))
		f.failed = f.failed || x.Level == install.Fail
	}
}

func (f *findings) ok(check, format string, args ...any) {
	f.add(install.Finding{Level: install.OK, Check: check, Text: fmt.Sprintf(format, args...)})
}

func (f *findings) warn(check, format string, args ...any) {
	f.add(install.Finding{Level: install.Warn, Check: check, Text: fmt.Sprintf(format, args...)})
}

func (f *findings) fail(check, format string, args ...any) {
	f.add(install.Finding{Level: install.Fail, Check: check, Text: fmt.Sprintf(format, args...)})
}

// needs names every right that is missing.
func (f *findings) needs(ctx context.Context, needs []install.Need) error {
	missing, err := f.to.Target.Missing(ctx, needs)
	if err != nil {
		return err
	}
	for _, m := range missing {
		f.fail("rights", "cluster %s: you may not %s", f.to.Target.Name, m)
	}
	return nil
}

// look finds out whether both clusters are fit for joining, and what is left to
// find out.
func (b *both) look(ctx context.Context) error {
	here, there := &findings{to: b.primary}, &findings{to: b.remote}
	if err := b.lookAtPrimary(ctx, here); err != nil {
		return err
	}
	if err := b.identify(ctx, here, there); err != nil {
		return err
	}
	if here.failed {
		return fmt.Errorf("cluster %s: %w", b.Primary.Name, ErrPreflight)
	}
	if err := b.wayToPrimary(ctx, there); err != nil {
		return err
	}
	if err := b.lookAtRemote(ctx, there); err != nil {
		return err
	}
	if there.failed {
		return fmt.Errorf("cluster %s: %w", b.Remote.Name, ErrPreflight)
	}
	return nil
}

// server looks whether a cluster answers, how old it is and what its clock says.
func (b *both) server(ctx context.Context, f *findings) error {
	found, err := install.Preflight(ctx, f.to.Target, nil, nil, b.Now, b.Force)
	for _, x := range found {
		if x.Check != "rights" && x.Check != "names" { // there was nothing to look for
			f.add(x)
		}
	}
	return err
}

// primaryNeeds are the rights that joining and leaving need in the primary.
func (b *both) primaryNeeds() []install.Need {
	var out []install.Need
	for _, verb := range []string{"get", "list", "create", "patch", "delete"} {
		out = append(out, install.Need{Verb: verb, Resource: "secrets", Namespace: b.Namespace})
	}
	return append(out, install.Need{Verb: "get", Resource: "namespaces"})
}

func (b *both) lookAtPrimary(ctx context.Context, f *findings) error {
	if err := b.server(ctx, f); err != nil {
		return err
	}
	if err := f.needs(ctx, b.primaryNeeds()); err != nil || f.failed {
		return err
	}
	f.ok("rights", "the remote secret may be written in namespace %s", b.Namespace)
	if err := b.findPrimaryID(ctx, f); err != nil {
		return err
	}
	if b.primaryID == b.Name {
		f.fail("names", "%s is the ID of the primary itself: give the remote another name", b.Name)
	}
	return nil
}

// findPrimaryID asks the control plane's Deployment for the primary's ID.
func (b *both) findPrimaryID(ctx context.Context, f *findings) error {
	if b.primaryID = b.PrimaryName; b.primaryID != "" {
		return nil
	}
	list, err := b.Primary.Client().AppsV1().Deployments(b.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		f.fail("primary", "cannot find out the ID of cluster %s: this needs verb list on deployments.apps in namespace %s, or give --primary-name: %v",
			b.Primary.Name, b.Namespace, err)
		return nil
	}
	for i := range list.Items {
		d := &list.Items[i]
		if rev := d.Labels["istio.io/rev"]; b.Revision != "" && rev != b.Revision {
			continue
		}
		for _, c := range d.Spec.Template.Spec.Containers {
			for _, e := range c.Env {
				if e.Name == "CLUSTER_ID" && e.Value != "" {
					b.primaryID = e.Value
					f.ok("primary", "Deployment %s/%s is the control plane of cluster %s", b.Namespace, d.Name, e.Value)
					return nil
				}
			}
		}
	}
	f.fail("primary", "cluster %s has no control plane in namespace %s (no Deployment with label app=istiod and variable CLUSTER_ID): install one, or give --primary-name",
		b.Primary.Name, b.Namespace)
	return nil
}

// identify finds out which cluster the remote is, and whether it or its name has
// joined already.
func (b *both) identify(ctx context.Context, here, there *findings) error {
	if err := there.needs(ctx, []install.Need{{Verb: "get", Resource: "namespaces"}}); err != nil {
		return err
	}
	if here.failed || there.failed {
		return nil
	}
	var uids [2]string
	for i, t := range []*install.Target{b.Primary, b.Remote} {
		ns, err := t.Client().CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read namespace kube-system of cluster %s: %w", t.Name, err)
		}
		uids[i] = string(ns.UID)
	}
	if b.uid = uids[1]; uids[0] == uids[1] {
		here.fail("names", "%s and %s are the same cluster: a primary reads itself without a secret; name the remote's --context", b.Primary.Name, b.Remote.Name)
		return nil
	}
	list, err := b.Primary.Client().CoreV1().Secrets(b.Namespace).List(ctx, metav1.ListOptions{LabelSelector: multicluster.SecretLabel + "=true"})
	if err != nil {
		return fmt.Errorf("list remote secrets in namespace %s of cluster %s: %w", b.Namespace, b.Primary.Name, err)
	}
	for i := range list.Items {
		b.compare(&list.Items[i], here)
	}
	if !here.failed {
		here.ok("names", "cluster %s is free, or this cluster's already", b.Name)
	}
	return nil
}

// compare looks for what a remote secret and this joining both claim.
func (b *both) compare(s *corev1.Secret, f *findings) {
	_, claims := s.Data[b.Name]
	uid, joined := s.Annotations[UIDAnnotation], s.Labels[JoinedLabel]
	mine := s.Name == b.secretName()
	switch {
	case mine && joined == "" && !b.Force:
		f.fail("names", "Secret %s/%s is there and was not made by join (but by create-remote-secret or istioctl): delete it, or take it over with --force", s.Namespace, s.Name)
	case mine && joined == "":
		f.warn("names", "Secret %s/%s was not made by join and is taken over", s.Namespace, s.Name)
	case mine && uid != b.uid:
		f.fail("names", "%s is the name of another cluster already (Secret %s/%s): choose another, or let that one leave: isthmus leave %s", b.Name, s.Namespace, s.Name, b.Name)
	case !mine && claims:
		f.fail("names", "Secret %s/%s holds credentials of a cluster %s already: delete it, or choose another name", s.Namespace, s.Name, b.Name)
	case !mine && joined != "" && uid == b.uid:
		f.fail("names", "this cluster has joined already, as %s: let it leave first: isthmus leave %s", joined, joined)
	}
}

// remoteNeeds are the rights of joining in the remote, beyond those with which
// the chart's objects are applied.
func (b *both) remoteNeeds() []install.Need {
	out := []install.Need{
		{Verb: "create", Group: "authorization.k8s.io", Resource: "subjectaccessreviews"},
		{Verb: "create", Group: "authentication.k8s.io", Resource: "tokenreviews"},
		{Verb: "get", Resource: "configmaps", Namespace: b.Namespace},
	}
	if b.LongLived {
		return append(out, install.Need{Verb: "get", Resource: "secrets", Namespace: b.Namespace},
			install.Need{Verb: "create", Resource: "secrets", Namespace: b.Namespace})
	}
	return append(out, install.Need{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Name: b.account(), Namespace: b.Namespace})
}

func (b *both) lookAtRemote(ctx context.Context, f *findings) error {
	objects, err := b.plan().Objects()
	if err != nil {
		return err
	}
	ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace"}}
	ns.SetName(b.Namespace)
	found, err := install.Preflight(ctx, b.Remote, objects, []*unstructured.Unstructured{ns}, b.Now, b.Force)
	f.add(found...)
	if err != nil {
		return err
	}
	if err := f.needs(ctx, b.remoteNeeds()); err != nil || f.failed {
		return err
	}
	have, err := b.Remote.Client().CoreV1().Namespaces().Get(ctx, b.Namespace, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read namespace %s of cluster %s: %w", b.Namespace, b.Remote.Name, err)
	}
	if err != nil {
		have = &corev1.Namespace{}
	}
	b.network(have, f)
	if others := namesIn(have.Annotations[controlPlaneAnnotation]); len(others) > 0 && len(withName(have.Annotations[controlPlaneAnnotation], b.primaryID)) > len(others) {
		f.warn("primary", "the control planes of %s look after this cluster too: their roots must be those of the mesh", strings.Join(others, ", "))
	}
	return nil
}

// network settles of which network the remote is.
func (b *both) network(have *corev1.Namespace, f *findings) {
	want, is := b.value("global.network"), have.Labels[networkLabel]
	switch {
	case want != "" && is != "" && want != is && !b.Force:
		f.fail("network", "namespace %s says that cluster %s is of network %s, and not of %s: leave --network out, change the label, or take it over with --force",
			b.Namespace, b.Remote.Name, is, want)
	case want != "":
		f.ok("network", "%s", want)
	case is != "":
		b.Values = manifests.Merge(b.Values, map[string]any{})
		manifests.Set(b.Values, "global.network", is)
		f.ok("network", "%s, as label %s of namespace %s says", is, networkLabel, b.Namespace)
	default:
		f.warn("network", "none is named: every proxy of the mesh will dial the pods of this cluster directly; give --network if they are behind a gateway")
	}
}
