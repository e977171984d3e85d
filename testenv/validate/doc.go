// Package validate checks xDS resources as deeply as can be done without an
// Envoy: what a proxy would refuse, and what it would take and then not do.
//
// It opens every Any, runs the validation that comes with Envoy's API on every
// message, refuses types and fields that nobody knows and fields that are
// deprecated (save for a list with reasons), and adds rules that the API's own
// validation cannot express: regular expressions, domains and filter chains that
// exclude one another, listener filters that chains depend on, references
// between resources. It is test code: no proxy's word is final but the proxy's
// own.
//
//	err := validate.Resource(typeURL, any)        // one resource, as received
//	err := validate.Message(message)              // one resource, as built
//	s := validate.Snapshot{}; s.Add(...)          // all that a proxy has
//	err := s.Check()
package validate
