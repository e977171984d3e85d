// Package load measures a control plane under many proxies: a synthetic mesh, a
// client that plays a thousand sidecars cheaply, and a floor server that sends
// recorded bytes. It measures whole processes from outside and knows nothing of
// the server but xDS and Istio's node metadata.
package load

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Topology is the synthetic mesh: services times endpoints, spread over
// namespaces, the endpoints of each service alternating between two networks.
type Topology struct{ Services, Endpoints, Namespaces int }

// Standard is the mesh that docs/performance.md reports on.
func Standard() Topology { return Topology{Services: 1000, Endpoints: 10, Namespaces: 10} }

// Cluster is the ID of the only cluster of the mesh.
const Cluster = "Kubernetes"

func (t Topology) namespace(s int) string { return fmt.Sprintf("ns-%d", s%t.Namespaces) }
func (t Topology) service(s int) string   { return fmt.Sprintf("svc-%05d", s) }
func (t Topology) network(e int) string   { return fmt.Sprintf("network%d", e%2+1) }

// host is the host name of a service.
func (t Topology) host(s int) string {
	return t.service(s) + "." + t.namespace(s) + ".svc.cluster.local"
}

func (t Topology) pod(s, e int) string { return fmt.Sprintf("%s-%d", t.service(s), e) }

func (t Topology) podIP(s, e int) netip.Addr {
	return nth(netip.AddrFrom4([4]byte{10, 64, 0, 0}), s*t.Endpoints+e+1)
}

func (t Topology) vip(s int) netip.Addr { return nth(netip.AddrFrom4([4]byte{10, 32, 0, 0}), s+1) }

func nth(base netip.Addr, n int) netip.Addr {
	b := base.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}

// Mark is the address that change number n gives to the first endpoint of the
// first service, which is on network1.
func Mark(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 250, byte(n >> 8), byte(n)}) }

// proxyOf says which pod proxy number i is: neighbours are of different
// services and networks.
func (t Topology) proxyOf(i int) (s, e int) {
	return i % t.Services, (i/t.Services + i) % t.Endpoints
}

// Write lays the mesh out as a world for isthmus serve --files: one folder per
// cluster below dir, the first service's slice in a small file of its own.
func (t Topology) Write(dir string) error {
	cluster := filepath.Join(dir, Cluster)
	if err := os.MkdirAll(cluster, 0o755); err != nil {
		return fmt.Errorf("create world: %w", err)
	}
	var b strings.Builder
	t.writeBase(&b)
	if err := os.WriteFile(filepath.Join(cluster, "base.yaml"), []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("write world: %w", err)
	}
	for ns := range t.Namespaces {
		b.Reset()
		for s := ns; s < t.Services; s += t.Namespaces {
			t.writeService(&b, s)
		}
		if err := os.WriteFile(filepath.Join(cluster, fmt.Sprintf("ns-%d.yaml", ns)), []byte(b.String()), 0o600); err != nil {
			return fmt.Errorf("write world: %w", err)
		}
	}
	return t.Move(dir, t.podIP(0, 0))
}

// Move makes addr the address of the marked endpoint.
func (t Topology) Move(dir string, addr netip.Addr) error {
	var b strings.Builder
	t.writeSlice(&b, 0, addr)
	return replaceFile(filepath.Join(dir, Cluster, "marked.yaml"), b.String())
}

// AddService adds one more service with endpoints of its own.
func (t Topology) AddService(dir string, n int) error {
	var b strings.Builder
	s := t.Services + n
	t.writeService(&b, s)
	return replaceFile(filepath.Join(dir, Cluster, fmt.Sprintf("added-%d.yaml", n)), b.String())
}

func replaceFile(path, text string) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write world: %w", err)
	}
	return os.Rename(tmp, path)
}

func (t Topology) writeBase(b *strings.Builder) {
	fmt.Fprintf(b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: network1}}\n")
	for i := range 3 {
		fmt.Fprintf(b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-%d, labels: {topology.kubernetes.io/region: region1, topology.kubernetes.io/zone: zone0}}\n", i)
	}
	for n := 1; n <= 2; n++ {
		fmt.Fprintf(b, `---
apiVersion: v1
kind: Service
metadata: {name: gateway-%d, namespace: istio-system, labels: {topology.istio.io/network: network%d}}
spec: {type: LoadBalancer, clusterIP: 10.31.0.%d, clusterIPs: [10.31.0.%d], ports: [{name: tls, port: 15443, targetPort: 15443}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.%d}]}}
`, n, n, n, n, n)
	}
}

func (t Topology) writeService(b *strings.Builder, s int) {
	fmt.Fprintf(b, `---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s, labels: {app: %s}}
spec: {clusterIP: %s, clusterIPs: [%s], selector: {app: %s}, ports: [{name: http, port: 80, targetPort: 8080}]}
`, t.service(s), t.namespace(s), t.service(s), t.vip(s), t.vip(s), t.service(s))
	for e := range t.Endpoints {
		fmt.Fprintf(b, `---
apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: %s
  labels: {app: %s, version: v1, security.istio.io/tlsMode: istio, service.istio.io/canonical-name: %s, topology.istio.io/network: %s}
spec: {nodeName: node-%d, serviceAccountName: default, containers: [{name: app, image: app}]}
status: {phase: Running, podIP: %s, podIPs: [{ip: %s}], conditions: [{type: Ready, status: "True"}]}
`, t.pod(s, e), t.namespace(s), t.service(s), t.service(s), t.network(e), e%3, t.podIP(s, e), t.podIP(s, e))
	}
	if s != 0 {
		t.writeSlice(b, s, t.podIP(s, 0))
	}
}

func (t Topology) writeSlice(b *strings.Builder, s int, first netip.Addr) {
	fmt.Fprintf(b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-x, namespace: %s, labels: {kubernetes.io/service-name: %s}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
`, t.service(s), t.namespace(s), t.service(s))
	for e := range t.Endpoints {
		addr := t.podIP(s, e)
		if e == 0 {
			addr = first
		}
		fmt.Fprintf(b, "- {addresses: [%s], conditions: {ready: true, serving: true, terminating: false}, nodeName: node-%d, targetRef: {kind: Pod, namespace: %s, name: %s}}\n",
			addr, e%3, t.namespace(s), t.pod(s, e))
	}
}
