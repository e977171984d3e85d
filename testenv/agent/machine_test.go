package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/registry/machine"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// group is a WorkloadGroup of machines of service account web, and a service
// that they are behind.
const group = `
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vms, namespace: shop}
spec:
  metadata: {labels: {app: stock}}
  probe: {httpGet: {port: 8080}}
  template: {serviceAccount: web, ports: {http: 8080}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: others, namespace: shop}
spec:
  template: {serviceAccount: other}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: stock, namespace: shop}
spec:
  hosts: [stock.example]
  location: MESH_INTERNAL
  ports: [{name: http, number: 80, protocol: HTTP}]
  resolution: STATIC
  workloadSelector: {labels: {app: stock}}
`

const stock = "outbound|80||stock.example"

// machineLab is a lab with groups of machines, whose entries go a second after
// they do.
func machineLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t, soonGone)
	require.NoError(t, l.c1.Apply(l.ctx, []byte(group)))
	t.Cleanup(func() {
		for _, o := range []struct{ resource, name string }{{"workloadgroups", "vms"}, {"workloadgroups", "others"}, {"serviceentries", "stock"}} {
			require.NoError(t, l.istio(o.resource).Delete(context.WithoutCancel(l.ctx), o.name, metav1.DeleteOptions{}))
		}
	})
	return l
}

func soonGone(s *serve.Settings) { s.Machines.Grace = time.Second }

// istio reads and writes objects of Istio's networking API in shop of c1.
func (l *lab) istio(resource string) dynamic.ResourceInterface {
	return l.c1.Dynamic().Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: resource}).Namespace("shop")
}

// machineToken is a token as `istioctl x workload entry configure` puts it onto a
// machine: of an account, and of no pod.
func (l *lab) machineToken() string {
	l.t.Helper()
	answer, err := l.c1.Client().CoreV1().ServiceAccounts("shop").CreateToken(l.ctx, "web",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"istio-ca"}}}, metav1.CreateOptions{})
	require.NoError(l.t, err)
	return answer.Status.Token
}

// provisioned is an agent with PROV_CERT: it has a certificate, made from a token
// once, renewed by itself since, and no token any more.
func (l *lab) provisioned() *Issued {
	l.t.Helper()
	token := l.machineToken()
	first, err := l.agent(func(c *Config) { c.Token = token }).Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
	require.NoError(l.t, err)
	second, err := l.agent(func(c *Config) { c.Certificate = first.TLS() }).Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
	require.NoError(l.t, err)
	require.NotEqual(l.t, first.Leaf.SerialNumber, second.Leaf.SerialNumber)
	return second
}

// vm is a machine's node.
func vm(group, ip string) Node {
	return Node{Name: "vm-" + strings.ReplaceAll(ip, ".", "-"), Namespace: "shop", Cluster: "c1", ServiceAccount: "web", Network: "net1", IP: ip,
		Extra: map[string]any{"AUTO_REGISTER_GROUP": group, "INSTANCE_IPS": ip, "LABELS": map[string]any{"app": "stock", "security.istio.io/tlsMode": "istio"}}}
}

// connect opens a machine's stream as its agent does: Envoy's first request, then
// the agent's report of health, which is never answered.
func (l *lab) connect(a *Agent, n Node, delta bool, why string) *Stream {
	l.t.Helper()
	s := l.open(a, n, delta)
	l.ask(s, Request{Type: CDS})
	require.NoError(l.t, s.Ack(l.next(s, CDS)))
	l.ask(s, Request{Type: Health, Reject: why})
	return s
}

// entry is the entry of a machine, nil if there is none.
func (l *lab) entry(ip string) *unstructured.Unstructured {
	l.t.Helper()
	o, err := l.istio("workloadentries").Get(l.ctx, "vms-"+ip+"-net1", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(l.t, err)
	return o
}

// registered waits until a replica looks after a machine, which is as well as
// said.
func (l *lab) registered(ip, replica, healthy string) *unstructured.Unstructured {
	l.t.Helper()
	var o *unstructured.Unstructured
	l.eventually(fmt.Sprintf("%s has registered at %s, healthy %s", ip, replica, healthy), func() bool {
		o = l.entry(ip)
		return o != nil && o.GetAnnotations()[machine.AnnotationController] == replica && healthOf(o) == healthy &&
			o.GetAnnotations()[machine.AnnotationDisconnected] == ""
	})
	return o
}

// healthOf is condition Healthy of an entry, "" if there is none.
func healthOf(o *unstructured.Unstructured) string {
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, x := range list {
		if c, ok := x.(map[string]any); ok && c["type"] == "Healthy" {
			return fmt.Sprint(c["status"])
		}
	}
	return ""
}

// hears reads assignments until an address of service stock is as it should be;
// nil is not there.
func (l *lab) hears(s *Stream, addr string, want *corev3.HealthStatus) {
	l.t.Helper()
	for {
		r := l.next(s, EDS)
		require.NoError(l.t, s.Ack(r, stock))
		for _, x := range r.Resources {
			require.NoError(l.t, validate.Resource(EDS, x))
			got := statusIn(l.t, x, addr)
			if (got == nil) == (want == nil) && (got == nil || *got == *want) {
				return
			}
		}
	}
}

// statusIn is the health of an address in an assignment, nil if it is not there.
func statusIn(t *testing.T, x *anypb.Any, addr string) *corev3.HealthStatus {
	t.Helper()
	var a endpointv3.ClusterLoadAssignment
	require.NoError(t, x.UnmarshalTo(&a))
	for _, group := range a.GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			socket := e.GetEndpoint().GetAddress().GetSocketAddress()
			if fmt.Sprintf("%s:%d", socket.GetAddress(), socket.GetPortValue()) == addr {
				health := e.GetHealthStatus()
				return &health
			}
		}
	}
	return nil
}

// TestMachine is the life of a machine with nothing but a client certificate: it
// registers at one replica, reports how it is, moves to another, and goes.
func TestMachine(t *testing.T) {
	l := machineLab(t)
	second := *l
	second.start(soonGone, func(s *serve.Settings) { s.PodName = "istiod-1" })
	client := l.open(l.web(), webNode(), true) // somebody who calls the service
	l.ask(client, Request{Type: EDS, Names: []string{stock}})
	bothProtocols(t, func(t *testing.T, delta bool) {
		l, second := l.in(t), second.in(t)
		ip := map[bool]string{true: "192.0.2.71", false: "192.0.2.72"}[delta]
		cert := l.provisioned()
		certified := func(c *Config) { c.Certificate = cert.TLS() }
		healthy, unhealthy := corev3.HealthStatus_HEALTHY, corev3.HealthStatus_UNHEALTHY

		s := l.connect(l.agent(certified), vm("vms", ip), delta, "Envoy's admin port is closed")
		o := l.registered(ip, "istiod-0", "False")
		require.Equal(t, "vms", o.GetAnnotations()[machine.AnnotationGroup])
		spec, _ := o.Object["spec"].(map[string]any)
		require.Equal(t, ip, spec["address"])
		require.Equal(t, "net1", spec["network"])
		require.Equal(t, "web", spec["serviceAccount"])
		l.hears(client, ip+":8080", &unhealthy)
		l.ask(s, Request{Type: Health})
		l.registered(ip, "istiod-0", "True")
		l.hears(client, ip+":8080", &healthy)
		require.Empty(t, s.Received(Health))

		// Its stream ends and it comes back at another replica, which repeats its report.
		s.Close()
		moved := second.connect(second.agent(certified), vm("vms", ip), delta, "")
		second.registered(ip, "istiod-1", "True")
		// A machine that left the first replica later is forgotten there.
		later := "192.0.2.99"
		fence := l.connect(l.agent(certified), vm("vms", later), delta, "")
		l.registered(later, "istiod-0", "True")
		fence.Close()
		l.eventually("the first replica has forgotten who left", func() bool { return l.entry(later) == nil })
		now := second.registered(ip, "istiod-1", "True")
		require.Equal(t, o.GetUID(), now.GetUID(), "the entry was there all the time")

		moved.Close()
		l.hears(client, ip+":8080", nil)
		require.Nil(t, l.entry(ip))
	})
}

// Who proves nothing, or to be another, does not register.
func TestMachineThatMayNotRegister(t *testing.T) {
	l := machineLab(t)
	cert := l.provisioned()
	token := l.machineToken()
	for _, c := range []struct {
		name  string
		agent func(*Config)
		group string
		code  codes.Code
		says  string
	}{
		{"a certificate of another account", func(c *Config) { c.Certificate = cert.TLS() }, "others", codes.PermissionDenied,
			"machines of WorkloadGroup shop/others have service account other, the proxy has proven to be " + spiffe("shop", "web")},
		{"no such group", func(c *Config) { c.Token = token }, "nobody", codes.FailedPrecondition, "there is no WorkloadGroup shop/nobody"},
		{"no credential", func(*Config) {}, "vms", codes.Unauthenticated, ""},
		{"plaintext", func(c *Config) { c.Plaintext, c.Address = true, l.plane.GRPCAddr() }, "vms", codes.Unauthenticated, "the proxy has proven no identity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := l.in(t)
			s := l.open(l.agent(c.agent), vm(c.group, "192.0.2.80"), true)
			l.ask(s, Request{Type: CDS})
			_, err := s.Next(l.ctx, CDS)
			require.Equal(t, c.code, status.Code(err), "%v", err)
			require.ErrorContains(t, err, c.says)
			require.Nil(t, l.entry("192.0.2.80"))
		})
	}
	t.Run("a token is as good", func(t *testing.T) {
		l := l.in(t)
		s := l.connect(l.agent(func(c *Config) { c.Token = token }), vm("vms", "192.0.2.81"), true, "")
		l.registered("192.0.2.81", "istiod-0", "True")
		s.Close()
		l.eventually("it is gone", func() bool { return l.entry("192.0.2.81") == nil })
	})
}

// Where registration is switched off machines are proxies like others.
func TestMachinesSwitchedOff(t *testing.T) {
	l := newLab(t, func(s *serve.Settings) { s.Machines.Off = true })
	cert := l.provisioned()
	s := l.connect(l.agent(func(c *Config) { c.Certificate = cert.TLS() }), vm("vms", "192.0.2.82"), true, "")
	l.ask(s, Request{Type: LDS})
	require.NotEmpty(t, l.next(s, LDS).Resources)
	require.Nil(t, l.entry("192.0.2.82"))
}
