// Package scenario tests the whole control plane with real parts: real API
// servers as clusters, the wiring that users run, and proxies that speak ADS
// over real streams and record what they hear.
//
// A scenario is a test: it starts a [World], changes something in a cluster or
// does something to one (kills it, pauses it, rotates its credentials), and
// asserts what proxies received, and that nothing else was pushed.
package scenario
