// Package join makes a cluster a remote of a primary, and undoes it: rights and
// the way to the primary in the remote (the chart of package manifests), its
// credentials in the primary, and what says whose remote it is.
//
// It decides in which order, looks at both clusters before it changes either,
// and knows what is its own. What is installed and how objects are written is
// the business of cmd/isthmus/install; what a remote secret is, of multicluster.
package join
