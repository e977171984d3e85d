// Package install holds the acceptance tests of installing and joining: a
// primary and two remotes on real API servers, with nothing granted to the
// control plane but what the charts grant. Pods get their proxies through real
// webhook calls, clusters join and leave with the code of the command line,
// tokens end and are renewed, control planes come and go under their proxies.
//
// It has no code but tests. How a mesh behaves once it is there is the business
// of testenv/scenario.
package install
