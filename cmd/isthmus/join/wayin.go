package join

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// discoveryPort is where proxies of other clusters reach the control plane.
const discoveryPort = 15012

// wayToPrimary finds the address at which the remote's proxies reach the primary,
// unless it is given or not wanted: a load balancer of the control plane itself,
// else of an east-west gateway that exposes it.
func (b *both) wayToPrimary(ctx context.Context, f *findings) error {
	if b.ReadOnly || b.value("global.remotePilotAddress") != "" || b.value("istiodRemote.injectionURL") != "" {
		return nil
	}
	list, err := b.Primary.Client().CoreV1().Services(b.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsForbidden(err) {
		return fmt.Errorf("list services in namespace %s of cluster %s: %w", b.Namespace, b.Primary.Name, err)
	}
	var own, gateways []corev1.Service
	for _, s := range list.Items {
		switch {
		case wayIn(&s) == "":
		case s.Labels["app"] == "istiod":
			own = append(own, s)
		case s.Labels["istio"] == "eastwestgateway":
			gateways = append(gateways, s)
		}
	}
	closed := ""
	for _, s := range append(own, gateways...) {
		through := ""
		if s.Labels["app"] != "istiod" {
			if through, err = b.exposedBy(ctx, &s); err != nil {
				return err
			}
			if through == "" {
				closed = s.Name
				continue
			}
		}
		b.Values = manifests.Merge(b.Values, map[string]any{})
		manifests.Set(b.Values, "global.remotePilotAddress", wayIn(&s))
		f.ok("primary", "reached from outside at %s, by Service %s/%s of cluster %s%s", wayIn(&s), b.Namespace, s.Name, b.Primary.Name, through)
		return nil
	}
	if closed != "" {
		f.fail("primary", "Service %s/%s of cluster %s has port %d and no Gateway opens it for the control plane: install that gateway with "+
			"--set controlPlane.expose=true, or give --pilot-address", b.Namespace, closed, b.Primary.Name, discoveryPort)
		return nil
	}
	f.fail("primary", "cluster %s has no address from outside (a load balancer of Service istiod, or of an east-west gateway with port %d): "+
		"give --pilot-address, or --read-only if nothing in this cluster is to get a proxy", b.Primary.Name, discoveryPort)
	return nil
}

// wayIn is the address of a load balancer that has port 15012, "" if it has not.
func wayIn(s *corev1.Service) string {
	if !slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == discoveryPort }) {
		return ""
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if address := strings.TrimSpace(in.IP + in.Hostname); address != "" {
			return address
		}
	}
	return ""
}

// exposedBy tells, for people, which Gateway passes connections to port 15012 of
// an east-west gateway on to the control plane; "" if none does. Who may not read
// Gateways gets the benefit of the doubt.
func (b *both) exposedBy(ctx context.Context, s *corev1.Service) (string, error) {
	gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}
	list, err := b.Primary.Dynamic().Resource(gvr).List(ctx, metav1.ListOptions{})
	switch {
	case apierrors.IsForbidden(err):
		return "; whether a Gateway exposes the control plane there could not be read", nil
	case apierrors.IsNotFound(err):
		return "", nil // no such kind
	case err != nil:
		return "", fmt.Errorf("list gateways of cluster %s: %w", b.Primary.Name, err)
	}
	for i := range list.Items {
		if o := &list.Items[i]; passesControlPlane(o, s.Spec.Selector) {
			return fmt.Sprintf(", which Gateway %s/%s exposes the control plane through", o.GetNamespace(), o.GetName()), nil
		}
	}
	return "", nil
}

// passesControlPlane reports whether a Gateway is for these pods and passes TLS on
// port 15012 through.
func passesControlPlane(gateway *unstructured.Unstructured, pods map[string]string) bool {
	selector, _, _ := unstructured.NestedStringMap(gateway.Object, "spec", "selector")
	if len(selector) == 0 || !labels.SelectorFromSet(selector).Matches(labels.Set(pods)) {
		return false
	}
	servers, _, _ := unstructured.NestedSlice(gateway.Object, "spec", "servers")
	return slices.ContainsFunc(servers, func(x any) bool {
		server, _ := x.(map[string]any)
		port, _, _ := unstructured.NestedInt64(server, "port", "number")
		mode, _, _ := unstructured.NestedString(server, "tls", "mode")
		return port == discoveryPort && mode == "PASSTHROUGH"
	})
}
