// Package conformance runs the conformance suite of the Kubernetes Gateway API
// against Isthmus, on a real API server and without a data plane.
//
// The suite applies its manifests, waits for the status that it expects, and
// sends requests. What it would send is answered by testenv/simulate, which works
// out from the resources that a router is given what an Envoy would do with the
// request. Tests that dial by themselves find sockets at the addresses of
// Gateways, behind which the same is acted out; those of the mesh, which run a
// client in a pod, get its answers by what the pod's sidecar is given. TLS is
// spoken by Go, with the certificates and roots that the resources name.
// Deployments and Gateways are looked after by a stand-in that makes Pods and
// Services for them, as a cluster would. It is a module of its own, so that the
// suite's dependencies are nobody else's.
//
// Features that are not claimed are either none of ours (UDPRoute, ListenerSet,
// isolation of listeners, misdirected requests, certificates for backends, the
// Service's address rather than the host telling what a request in the mesh is
// for), or cannot be seen without a data plane (copies of requests, retries,
// WebSocket, what Envoy answers browsers, addresses that are asked for).
package conformance
