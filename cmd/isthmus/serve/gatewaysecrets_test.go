package serve

import (
	"context"
	"crypto/tls"
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// inEast authenticates everybody as an account of cluster east, by its token,
// which is a namespace.
type inEast struct{ knows }

func (i inEast) Authenticate(ctx context.Context, r authn.Request) (authn.Caller, error) {
	c, err := i.knows.Authenticate(ctx, r)
	c.Cluster = "east"
	return c, err
}

// Row 34: a gateway asks for Secrets of its own namespace and of another one, and
// for what is no name of one. It gets its own; the others are left out, and the
// log says so.
func TestRow34SecretsOfAnotherNamespace(t *testing.T) {
	roots := newOutsideRoot(t, "roots of clients")
	pem := roots.pem()
	secret := func(namespace string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "edge-cacert", Namespace: namespace}, Data: map[string][]byte{"ca.crt": pem}}
	}
	api := fake.NewClientset(secret("shop"), secret("bank"))
	api.PrependReactor("create", "subjectaccessreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		review := a.(k8stesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		review.Status.Allowed = true // even in the other namespace
		return true, review, nil
	})
	clients := func(mesh.ClusterID) (kubernetes.Interface, bool) { return api, true }
	core, logged := observer.New(zap.WarnLevel)
	r := run(t, func(c *Control) {
		c.access.chain = authn.Chain{inEast{}}
		c.access.log, c.access.refusals = zap.New(core), rate.NewLimiter(rate.Inf, 1)
		var err error
		c.access.secrets, err = authn.NewSecretAccess(authn.SecretAccessConfig{Clients: clients})
		require.NoError(t, err)
		c.secrets.watches = newSecretWatches(clients, c.secrets.changed, zap.NewNop())
		t.Cleanup(c.secrets.watches.start(context.Background()))
	})
	r.connect(r.control.SecureGRPCAddr(), credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})) //nolint:gosec // it is our own
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer shop"), time.Minute)
	defer cancel()
	st, err := r.ads.StreamAggregatedResources(ctx)
	require.NoError(t, err)
	md, err := structpb.NewStruct(map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "shop"})
	require.NoError(t, err)
	require.NoError(t, st.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typeSecret,
		Node:          &corev3.Node{Id: "router~10.1.0.10~edge-0.shop~shop.svc.cluster.local", Metadata: md},
		ResourceNames: []string{"kubernetes-gateway://bank/edge-cacert", "kubernetes://edge-cacert", "kubernetes://bank/edge-cacert", "file:///etc/passwd"}}))
	resp, err := st.Recv()
	require.NoError(t, err)
	require.Len(t, resp.Resources, 1)
	var got tlsv3.Secret
	require.NoError(t, resp.Resources[0].UnmarshalTo(&got))
	require.Equal(t, "kubernetes://edge-cacert", got.Name)
	require.Equal(t, pem, got.GetValidationContext().GetTrustedCa().GetInlineBytes())
	var left []string
	for _, e := range logged.FilterMessage("secret left out").All() {
		left = append(left, e.ContextMap()["error"].(string))
	}
	slices.Sort(left)
	left = slices.Compact(left) // once for every look
	require.Len(t, left, 3)
	require.Contains(t, left[1], `secret "kubernetes-gateway://bank/edge-cacert": is in another namespace than the proxy, which is in shop`)
	require.Contains(t, left[2], `secret "kubernetes://bank/edge-cacert": is in another namespace`)
	require.Contains(t, left[0], "file:///etc/passwd")
	for _, a := range api.Actions() {
		if a.GetResource().Resource == "secrets" {
			require.Equal(t, "shop", a.GetNamespace(), "the other namespace's is not even read")
		}
	}
}
