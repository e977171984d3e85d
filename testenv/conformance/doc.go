// Package conformance runs the conformance suite of the Kubernetes Gateway API
// against Isthmus, on a real API server and without a data plane.
//
// The suite applies its manifests, waits for the status that it expects, and
// sends requests. What it would send is answered by testenv/simulate, which works
// out from the resources that a router is given what an Envoy would do with the
// request. Deployments and Gateways are looked after by a stand-in that makes
// Pods and Services for them, as a cluster would. It is a module of its own, so
// that the suite's dependencies are nobody else's.
package conformance
