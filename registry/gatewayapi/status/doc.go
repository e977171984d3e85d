// Package status writes the status of objects of the Kubernetes Gateway API.
//
// It owns who writes (one replica, which its caller elects), when (what is wanted
// differs from what is there; never against somebody else for long), and what is
// left alone (conditions and parents that are not ours). It also makes the
// classes that users expect to be there, and runs what makes routers for Gateways
// under the same Lease, because the status tells of them. What is wanted is worked
// out by registry/gatewayapi.
package status
