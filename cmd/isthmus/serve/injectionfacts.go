package serve

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/mesh/inject"
	"github.com/isthmus-mesh/isthmus/mesh/inject/webhook"
)

// Times and bounds of what is found out for injection.
const (
	factTimeout    = 3 * time.Second  // of one question to an API server
	namespaceFresh = time.Minute      // how long a namespace's metadata counts
	nodesFresh     = 10 * time.Minute // how long the nodes' version counts
	factRetry      = 30 * time.Second // before a question that failed is asked again
	maxNamespaces  = 10_000           // namespaces that are remembered
	nodePage       = 250              // nodes read at a time
)

// injectionFacts finds out what injection needs to know of clusters: metadata
// of namespaces, the network, and whether nodes run native sidecars. Answers are
// remembered, and an answer that cannot be had now does not undo an older one.
type injectionFacts struct {
	c     *Control
	log   *zap.Logger
	asked singleflight.Group

	mu         sync.Mutex
	namespaces map[string]*fact[*inject.Namespace]
	native     map[mesh.ClusterID]*fact[bool]
}

// fact is something that was found out.
type fact[T any] struct {
	value T
	until time.Time
}

func newInjectionFacts(c *Control) *injectionFacts {
	return &injectionFacts{c: c, log: c.log.Named("inject"), namespaces: map[string]*fact[*inject.Namespace]{}, native: map[mesh.ClusterID]*fact[bool]{}}
}

// about answers what is known of a namespace of a cluster.
func (f *injectionFacts) about(ctx context.Context, cluster, namespace string) webhook.Facts {
	id := f.c.settings.canonical(mesh.ClusterID(cluster))
	out := webhook.Facts{NativeSidecars: f.c.settings.Injection.NativeSidecars == nativeOn}
	if x, ok := f.c.store.Catalog().Cluster(id); ok {
		out.Network = string(x.Network)
	}
	client, ok := f.c.clientFor(id)
	if !ok {
		return out
	}
	out.Namespace = lookup(ctx, f, f.namespaces, string(id)+"/"+namespace, namespaceFresh, func(ctx context.Context) (*inject.Namespace, error) {
		return readNamespace(ctx, client, namespace)
	})
	if least := f.c.settings.Injection.leastKubelet(); least != nil {
		out.NativeSidecars = lookup(ctx, f, f.native, id, nodesFresh, func(ctx context.Context) (bool, error) {
			return nodesAtLeast(ctx, client, least)
		})
	}
	return out
}

// leastKubelet is the least version of nodes for native sidecars, nil if the
// nodes do not matter.
func (s *Injection) leastKubelet() *version.Version {
	switch s.NativeSidecars {
	case nativeAuto, nativeStable, "":
		return version.MajorMinor(1, 33)
	case nativeBeta:
		return version.MajorMinor(1, 29)
	}
	return nil
}

// lookup returns what is remembered while it is fresh, else asks. All who want
// the same wait for one question.
func lookup[K comparable, T any](ctx context.Context, f *injectionFacts, known map[K]*fact[T], key K, fresh time.Duration, ask func(context.Context) (T, error)) T {
	f.mu.Lock()
	old := known[key]
	f.mu.Unlock()
	if old != nil && time.Now().Before(old.until) {
		return old.value
	}
	question := fmt.Sprintf("%T %v", known, key)
	answer := f.asked.DoChan(question, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), factTimeout)
		defer cancel()
		v, err := ask(ctx)
		next := &fact[T]{value: v, until: time.Now().Add(fresh)}
		if err != nil {
			f.log.Warn("cannot find out what injection wants to know; what was known stays", zap.String("about", fmt.Sprint(key)), zap.Error(err))
			next.until = time.Now().Add(factRetry)
			if old != nil {
				next.value = old.value
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(known) >= maxNamespaces {
			clear(known)
		}
		known[key] = next
		return next.value, nil
	})
	var none T
	select {
	case r := <-answer:
		if v, ok := r.Val.(T); ok {
			return v
		}
	case <-ctx.Done():
	}
	if old != nil {
		return old.value
	}
	return none
}

func readNamespace(ctx context.Context, client kubernetes.Interface, name string) (*inject.Namespace, error) {
	ns, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read namespace %s: %w", name, err)
	}
	return &inject.Namespace{Labels: ns.Labels, Annotations: ns.Annotations}, nil
}

// nodesAtLeast reports whether a cluster has nodes and all of them are of a
// version or newer.
func nodesAtLeast(ctx context.Context, client kubernetes.Interface, least *version.Version) (bool, error) {
	o, any := metav1.ListOptions{Limit: nodePage}, false
	for {
		page, err := client.CoreV1().Nodes().List(ctx, o)
		if err != nil {
			return false, fmt.Errorf("list nodes: %w", err)
		}
		for i := range page.Items {
			v, err := version.ParseGeneric(page.Items[i].Status.NodeInfo.KubeletVersion)
			if err != nil || !v.AtLeast(least) {
				return false, nil
			}
			any = true
		}
		if o.Continue = page.Continue; o.Continue == "" {
			return any, nil
		}
	}
}
