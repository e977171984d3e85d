// Package dropin puts Isthmus where istiod was: clusters of real API servers are
// prepared as Istio's charts leave them behind, with the rights that Istio's roles
// give and no others, and the binary is started with istiod's arguments and
// variables. What API servers refuse is counted, and must be what is expected.
package dropin
