package install

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
)

// What follows is for callers that install as a part of something larger, and
// look and report by themselves.

// Client returns the client of the cluster.
func (t *Target) Client() kubernetes.Interface { return t.client }

// Say tells of progress, in the words of the installer: what was done, and to what.
func (i *Installer) Say(did, what string) { i.say("%-10s %s", did, what) }

// Did renders what was done, for a dry run what would have been.
func (i *Installer) Did(did string) string { return i.verb(did) }

// Carry applies a plan that has been checked: what [Installer.Install] does
// after its preflight, in namespaces that are there, without waiting.
func (i *Installer) Carry(ctx context.Context, p Plan) error {
	objects, err := p.Objects()
	if err != nil {
		return err
	}
	if err := i.applyAll(ctx, objects); err != nil {
		return err
	}
	return i.prune(ctx, p, objects)
}

// Until looks until there is nothing to wait for any more, within the timeout.
func (i *Installer) Until(ctx context.Context, look func(context.Context) (waitingFor string, err error)) error {
	return i.until(ctx, look)
}

// Need is one thing that must be allowed.
type Need struct{ Verb, Group, Resource, Subresource, Name, Namespace string }

func (n Need) right() right {
	return right{verb: n.Verb, group: n.Group, resource: n.Resource, subresource: n.Subresource, name: n.Name, namespace: n.Namespace}
}

// Missing lists which of the needs are not granted, each as users read it.
func (t *Target) Missing(ctx context.Context, needs []Need) ([]string, error) {
	rights := make([]right, len(needs))
	for i, n := range needs {
		rights[i] = n.right()
	}
	refused, err := t.ask(ctx, rights)
	out := make([]string, len(refused))
	for i, r := range refused {
		out[i] = r.String()
	}
	return out, err
}

// RemovalNeeds are the rights with which a release is found and removed.
func RemovalNeeds(namespace string) []Need {
	var out []Need
	for _, gvk := range installedKinds() {
		if gvk.Group == "networking.istio.io" {
			continue // an API server without the kind has none of its objects
		}
		n := Need{Group: gvk.Group, Resource: resourceOfKind(gvk).Resource}
		if !clusterWide(gvk.Kind) {
			n.Namespace = namespace
		}
		for _, n.Verb = range []string{"list", "delete"} {
			out = append(out, n)
		}
	}
	return out
}

// Left lists what a namespace holds, but for what Kubernetes itself puts into
// every namespace: each as "resource name".
func (t *Target) Left(ctx context.Context, namespace string) ([]string, error) {
	lists, err := t.client.Discovery().ServerPreferredNamespacedResources()
	if err != nil {
		return nil, fmt.Errorf("ask cluster %s for its kinds: %w", t.Name, err)
	}
	var out []string
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("ask cluster %s for its kinds: %w", t.Name, err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "delete") || r.Name == "events" {
				continue
			}
			found, err := t.dynamic.Resource(gv.WithResource(r.Name)).Namespace(namespace).List(ctx, metav1.ListOptions{})
			if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("list %s in namespace %s of cluster %s: %w", r.Name, namespace, t.Name, err)
			}
			for n := range found.Items {
				if o := &found.Items[n]; !standard(r.Name, o.GetName()) && o.GetDeletionTimestamp() == nil {
					out = append(out, r.Name+" "+o.GetName())
				}
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// standard objects are in every namespace.
func standard(resource, name string) bool {
	return resource == "serviceaccounts" && name == "default" || resource == "configmaps" && name == "kube-root-ca.crt"
}
