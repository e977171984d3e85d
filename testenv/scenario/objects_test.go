package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func writeFile(t *testing.T, dir, name string, body []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, body, 0o600))
	return path
}

// Service is a Service of namespace shop with one HTTP port, without selector:
// its slice is the test's to write.
func Service(name string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: shop}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
`, name)
}

// Pods are running pods of a service in namespace shop, one per address, and
// the slice that lists them. Nothing else writes the slice: a Service without a
// selector has no controller.
func Pods(service string, mtls bool, addrs ...string) string {
	var b strings.Builder
	for _, a := range addrs {
		b.WriteString(Pod(service, a, mtls))
	}
	b.WriteString(Slice(service, addrs...))
	return b.String()
}

// Pod is one running pod with an address.
func Pod(service, addr string, mtls bool) string {
	label := ""
	if mtls {
		label = ", security.istio.io/tlsMode: istio"
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: shop
  labels: {app: %s, version: v1%s}
spec:
  nodeName: node-1
  serviceAccountName: default
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: example.com/app}]
status:
  phase: Running
  podIP: %s
  podIPs: [{ip: %s}]
  conditions: [{type: Ready, status: "True"}]
---
`, podName(service, addr), service, label, addr, addr)
}

func podName(service, addr string) string {
	return service + "-" + strings.ReplaceAll(addr, ".", "-")
}

// Slice is the slice of a service with the pods of these addresses.
func Slice(service string, addrs ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: %s-1
  namespace: shop
  labels: {kubernetes.io/service-name: %s}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
`, service, service)
	if len(addrs) == 0 {
		return strings.TrimSuffix(b.String(), "endpoints:\n") + "endpoints: []\n---\n"
	}
	for _, a := range addrs {
		fmt.Fprintf(&b, "- {addresses: [%s], conditions: {ready: true}, nodeName: node-1, targetRef: {kind: Pod, namespace: shop, name: %s}}\n", a, podName(service, a))
	}
	return b.String() + "---\n"
}

// Gateway is an east-west gateway Service of a network with load balancer addresses.
func Gateway(network string, addrs ...string) string {
	var ingress []string
	for _, a := range addrs {
		ingress = append(ingress, fmt.Sprintf("{ip: %s}", a))
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata:
  name: eastwestgateway
  namespace: istio-system
  labels: {topology.istio.io/network: %s}
spec:
  type: LoadBalancer
  ports: [{name: tls, port: 15443, targetPort: 15443}]
status:
  loadBalancer: {ingress: [%s]}
---
`, network, strings.Join(ingress, ", "))
}

// Upstream is the name of the upstream of a service of namespace shop on port 80.
func Upstream(service string) string {
	return "outbound|80||" + service + ".shop.svc.cluster.local"
}

// breakToken makes the bearer token of a kubeconfig one that no server accepts.
func breakToken(kubeconfig []byte) []byte {
	lines := strings.Split(string(kubeconfig), "\n")
	for i, l := range lines {
		if at := strings.Index(l, "token:"); at >= 0 {
			lines[i] = l[:at] + "token: bm90LWEtdG9rZW4"
		}
	}
	return []byte(strings.Join(lines, "\n"))
}

// basics are what every cluster has: namespaces, and a node that says where it is.
func basics(name, network string) string {
	labels := ""
	if network != "" {
		labels = fmt.Sprintf("\n  labels: {topology.istio.io/network: %s}", network)
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata:
  name: istio-system%s
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata:
  name: node-1
  labels: {topology.kubernetes.io/region: %s, topology.kubernetes.io/zone: %s-a}
`, labels, name, name)
}
