package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// callTimeout bounds one request to an API server.
const callTimeout = 30 * time.Second

// Target is a cluster to install into.
type Target struct {
	// Name is how messages call the cluster: the context of the kubeconfig.
	Name string
	REST *rest.Config

	client  kubernetes.Interface
	dynamic dynamic.Interface
}

// Connect finds a cluster by kubeconfig and context; both may be empty for the
// user's own. It does not speak to it.
func Connect(kubeconfig, contextName string) (*Target, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: contextName})
	cfg, err := config.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", Unnamed(err))
	}
	name := contextName
	if raw, err := config.RawConfig(); err == nil && name == "" {
		name = raw.CurrentContext
	}
	return NewTarget(name, cfg)
}

// Unnamed says what to do about a kubeconfig that leads to no cluster.
func Unnamed(err error) error {
	if clientcmd.IsEmptyConfig(err) {
		return errors.New("there is no kubeconfig: neither in $KUBECONFIG nor at ~/.kube/config; name one with --kubeconfig and --context")
	}
	return fmt.Errorf("%w; name it with --kubeconfig and --context", err)
}

// NewTarget returns a target for credentials.
func NewTarget(name string, cfg *rest.Config) (*Target, error) {
	if name == "" {
		name = cfg.Host
	}
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst, cfg.Timeout = 50, 100, callTimeout
	cfg.WarningHandler = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of cluster %s: %w", name, err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of cluster %s: %w", name, err)
	}
	return &Target{Name: name, REST: cfg, client: client, dynamic: dyn}, nil
}

// Dynamic is a client for objects of any kind.
func (t *Target) Dynamic() dynamic.Interface { return t.dynamic }

// resourceOf is where objects of a kind are found. All our kinds have regular
// plurals, so that it needs no discovery: it works before definitions exist.
func resourceOf(o *unstructured.Unstructured) schema.GroupVersionResource {
	return resourceOfKind(o.GroupVersionKind())
}

func resourceOfKind(gvk schema.GroupVersionKind) schema.GroupVersionResource {
	if strings.HasSuffix(gvk.Kind, "Gateway") { // the library would say gatewaies
		return gvk.GroupVersion().WithResource(strings.ToLower(gvk.Kind) + "s")
	}
	gvr, _ := meta.UnsafeGuessKindToResource(gvk)
	return gvr
}

func (t *Target) api(o *unstructured.Unstructured) dynamic.ResourceInterface {
	api := t.dynamic.Resource(resourceOf(o))
	if ns := o.GetNamespace(); ns != "" {
		return api.Namespace(ns)
	}
	return api
}

// get reads the object that is there now; nil if there is none, or nothing of
// its kind can be.
func (t *Target) get(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	got, err := t.api(o).Get(ctx, o.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, t.explain(err, "read", "get", o)
	}
	return got, nil
}

// explain wraps an error of the API server so that it names cluster, object and,
// where that is it, the permission.
func (t *Target) explain(err error, doing, verb string, o *unstructured.Unstructured) error {
	what := Describe(o)
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s %s in cluster %s: not allowed: this needs verb %s on %s%s: %w", doing, what, t.Name, verb,
			resourceOf(o).GroupResource(), within(o.GetNamespace()), err)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%s %s in cluster %s: %w; --force takes these fields over", doing, what, t.Name, err)
	case meta.IsNoMatchError(err):
		return fmt.Errorf("%s %s in cluster %s: the API server does not have this kind: %w", doing, what, t.Name, err)
	}
	return fmt.Errorf("%s %s in cluster %s: %w", doing, what, t.Name, err)
}

func within(namespace string) string {
	if namespace == "" {
		return ""
	}
	return " in namespace " + namespace
}

// Describe names an object in messages.
func Describe(o *unstructured.Unstructured) string {
	if ns := o.GetNamespace(); ns != "" {
		return o.GetKind() + " " + ns + "/" + o.GetName()
	}
	return o.GetKind() + " " + o.GetName()
}

// ours reports whether an object was installed under a release. What
// create-remote-secret and join made names no release, and may be taken in.
func ours(o *unstructured.Unstructured, release string) bool {
	labels := o.GetLabels()
	instance := labels[manifests.InstanceLabel]
	return labels[manifests.ManagedByLabel] == manifests.ManagedBy && (instance == "" || instance == release)
}

// releaseOf is the release that an object was rendered for.
func releaseOf(o *unstructured.Unstructured) string { return o.GetLabels()[manifests.InstanceLabel] }

// managers names who has written to an object.
func managers(o *unstructured.Unstructured) []string {
	var out []string
	for _, f := range o.GetManagedFields() {
		if !slices.Contains(out, f.Manager) {
			out = append(out, f.Manager)
		}
	}
	if release := o.GetAnnotations()["meta.helm.sh/release-name"]; release != "" {
		out = append(out, "Helm release "+release)
	}
	if len(out) == 0 {
		return []string{"unknown"}
	}
	return out
}

// errInterrupted is what waiting ends with when the user gives up.
var errInterrupted = errors.New("interrupted")
