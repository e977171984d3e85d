package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// ErrNothing says that there was nothing to remove.
var ErrNothing = errors.New("nothing of this release is installed")

// installedKinds are all that charts have, in the order in which they are
// removed: first what calls the control plane, last what it needs.
func installedKinds() []schema.GroupVersionKind {
	gvk := func(group, version, kind string) schema.GroupVersionKind {
		return schema.GroupVersionKind{Group: group, Version: version, Kind: kind}
	}
	const rbac, admission = "rbac.authorization.k8s.io", "admissionregistration.k8s.io"
	return []schema.GroupVersionKind{
		gvk(admission, "v1", kindInjection), gvk(admission, "v1", "ValidatingWebhookConfiguration"),
		gvk("networking.istio.io", "v1", "VirtualService"), gvk("networking.istio.io", "v1", "Gateway"),
		gvk("autoscaling", "v2", "HorizontalPodAutoscaler"), gvk("policy", "v1", "PodDisruptionBudget"), gvk("apps", "v1", "Deployment"),
		gvk("discovery.k8s.io", "v1", "EndpointSlice"), gvk("", "v1", "Service"), gvk("", "v1", "ConfigMap"),
		gvk(rbac, "v1", "RoleBinding"), gvk(rbac, "v1", "Role"), gvk(rbac, "v1", "ClusterRoleBinding"), gvk(rbac, "v1", "ClusterRole"),
		gvk("", "v1", "ServiceAccount"),
	}
}

// owned lists the objects of a release: cluster-wide ones, and those in its
// namespace.
func (t *Target) owned(ctx context.Context, release, namespace string) ([]*unstructured.Unstructured, error) {
	selector := manifests.ManagedByLabel + "=" + manifests.ManagedBy + "," + manifests.InstanceLabel + "=" + release
	var out []*unstructured.Unstructured
	for _, gvk := range installedKinds() {
		gvr := resourceOfKind(gvk)
		var api dynamic.ResourceInterface = t.dynamic.Resource(gvr)
		if !clusterWide(gvk.Kind) {
			api = t.dynamic.Resource(gvr).Namespace(namespace)
		}
		list, err := api.List(ctx, metav1.ListOptions{LabelSelector: selector})
		if apierrors.IsNotFound(err) {
			continue // the API server does not have the kind
		}
		if err != nil {
			return nil, fmt.Errorf("list %s of release %s in cluster %s: this needs verb list on %s: %w", gvr.Resource, release, t.Name, gvr.GroupResource(), err)
		}
		for i := range list.Items {
			if !derived(&list.Items[i]) {
				out = append(out, &list.Items[i])
			}
		}
	}
	return out, nil
}

func clusterWide(kind string) bool {
	return strings.HasPrefix(kind, "Cluster") || strings.HasSuffix(kind, "WebhookConfiguration")
}

// derived objects carry our labels because a controller copied them, such as the
// EndpointSlices of our Services: they go with their owners.
func derived(o *unstructured.Unstructured) bool {
	return len(o.GetOwnerReferences()) > 0 || o.GetKind() == "EndpointSlice" && o.GetLabels()["endpointslice.kubernetes.io/managed-by"] != manifests.ManagedBy
}

// Uninstall removes the objects of a release, and names what the control plane
// itself has made and stays.
func (i *Installer) Uninstall(ctx context.Context, release, namespace string) error {
	objects, err := i.Target.owned(ctx, release, namespace)
	if err != nil {
		return err
	}
	if len(objects) == 0 {
		return fmt.Errorf("uninstall release %s from namespace %s of cluster %s: %w", release, namespace, i.Target.Name, ErrNothing)
	}
	primary := slices.ContainsFunc(objects, isControlPlane)
	for _, o := range objects {
		if err := i.remove(ctx, o); err != nil {
			return err
		}
	}
	if primary {
		i.say("These stay, because certificates, proxies and users' objects depend on them:")
		i.say("  Secrets istio-ca-secret, cacerts and isthmus-ca-rotation: the keys of the mesh's CA")
		i.say("  ConfigMaps istio-ca-root-cert in all namespaces: the roots that proxies trust")
		i.say("  the definitions of Istio's custom resources, with all objects of users")
	}
	return nil
}

// remove deletes one object, if it is still the one that was looked at.
func (i *Installer) remove(ctx context.Context, o *unstructured.Unstructured) error {
	uid, background := o.GetUID(), metav1.DeletePropagationBackground
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background}
	if i.DryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	err := i.Target.api(o).Delete(ctx, o.GetName(), options)
	if err != nil && !apierrors.IsNotFound(err) {
		return i.Target.explain(err, "delete", "delete", o)
	}
	i.say("%-10s %s", i.verb("deleted"), Describe(o))
	return nil
}
