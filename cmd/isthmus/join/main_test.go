package join_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/join"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(lending{m}) }

// lending stops the clusters before leaks are looked for.
type lending struct{ *testing.M }

func (l lending) Run() int {
	defer func() {
		for _, c := range []*apiserver.Cluster{shared.east, shared.west} {
			if c != nil {
				_ = c.Stop()
			}
		}
	}()
	return l.M.Run()
}

// shared are the API servers of all tests, which run one after the other: a
// primary and a remote.
var shared struct {
	once       sync.Once
	east, west *apiserver.Cluster
	err        error
}

// lab is a pair of clusters with what the commands said.
type lab struct {
	t          *testing.T
	ctx        context.Context
	east, west *apiserver.Cluster
	out        bytes.Buffer
}

func newLab(t *testing.T) *lab {
	t.Helper()
	apiserver.NeedBinary(t)
	shared.once.Do(func() {
		var wg sync.WaitGroup
		var errs [2]error
		wg.Go(func() { shared.east, errs[0] = apiserver.Start(context.Background(), apiserver.Config{Name: "east"}) })
		wg.Go(func() { shared.west, errs[1] = apiserver.Start(context.Background(), apiserver.Config{Name: "west"}) })
		wg.Wait()
		if shared.err = errors.Join(errs[:]...); shared.err == nil {
			shared.err = shared.east.EnsureNamespace(context.Background(), "istio-system")
		}
	})
	require.NoError(t, shared.err)
	return &lab{t: t, ctx: t.Context(), east: shared.east, west: shared.west}
}

// target is a cluster as its administrator.
func (l *lab) target(c *apiserver.Cluster) *install.Target {
	l.t.Helper()
	t, err := install.NewTarget(c.Name(), c.REST())
	require.NoError(l.t, err)
	return t
}

// options joins west to east. There is no control plane to wait for.
func (l *lab) options(change ...func(*join.Options)) join.Options {
	l.t.Helper()
	o := join.Options{Name: "west", Primary: l.target(l.east), Remote: l.target(l.west), PrimaryName: "east", Out: &l.out, NoWait: true,
		Poll: 10 * time.Millisecond, Timeout: time.Minute,
		Values: map[string]any{"global": map[string]any{"network": "network-2", "remotePilotAddress": "192.0.2.10"}}}
	for _, f := range change {
		f(&o)
	}
	return o
}

// said returns what was said since the last call.
func (l *lab) said() string {
	defer l.out.Reset()
	return l.out.String()
}

// everything lists all objects of a cluster by kind, namespace and name with
// their versions, but those that change by themselves.
func everything(ctx context.Context, t *testing.T, c *apiserver.Cluster) map[string]string {
	t.Helper()
	lists, err := c.Client().Discovery().ServerPreferredResources()
	require.NoError(t, err)
	out := map[string]string{}
	for _, list := range lists {
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "get") || slices.Contains([]string{"events", "leases", "componentstatuses", "endpoints"}, r.Name) {
				continue
			}
			gv, err := schema.ParseGroupVersion(list.GroupVersion)
			require.NoError(t, err)
			objects, err := c.Dynamic().Resource(gv.WithResource(r.Name)).List(ctx, metav1.ListOptions{})
			require.NoError(t, err)
			for _, o := range objects.Items {
				if o.GetName() == "kube-root-ca.crt" {
					continue // comes to a new namespace when it does
				}
				out[fmt.Sprintf("%s %s %s/%s", list.GroupVersion, r.Name, o.GetNamespace(), o.GetName())] = o.GetResourceVersion()
			}
		}
	}
	return out
}

// as returns credentials of an account of the remote with these rules.
func (l *lab) as(c *apiserver.Cluster, name string, rules []rbacv1.PolicyRule) *install.Target {
	l.t.Helper()
	meta, opts := metav1.ObjectMeta{Name: name}, metav1.CreateOptions{}
	token, err := c.Token(l.ctx, "default", name)
	require.NoError(l.t, err)
	_, err = c.Client().RbacV1().ClusterRoles().Create(l.ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, opts)
	require.NoError(l.t, err)
	_, err = c.Client().RbacV1().ClusterRoleBindings().Create(l.ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "default", Name: name}}}, opts)
	require.NoError(l.t, err)
	cfg := rest.AnonymousClientConfig(c.REST())
	cfg.BearerToken = token
	target, err := install.NewTarget(c.Name(), cfg)
	require.NoError(l.t, err)
	return target
}
