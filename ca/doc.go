// Package ca is who is who: the certificate authority of the mesh.
//
// It owns the issuing material (where it comes from, whether it is whole, when
// it is replaced), the signing of workload certificates and of the control
// plane's own, the CSR service that proxies call, and the distribution of the
// roots into every namespace. Who a caller is, package ca/authn says. What a
// proxy may hear is not decided here.
//
// Its parts, each in a file of its name:
//
//	bundle.go     issuing material, validated whole
//	source*.go    where material comes from; selfsigned.go makes it
//	rotation.go   when a new issuer takes over: a pure state machine
//	keeper.go     runs the sources and the rotation, feeds the authority
//	authority.go  signs
//	service.go    the gRPC service that proxies ask
//	serving.go    the control plane's own TLS
//	rootcert.go   ConfigMaps with the roots
//	offline.go    roots and intermediates made by hand
//
// The package imports package mesh and ca/authn only; cmd wires it to clusters
// and proxies.
package ca
