// Package authn finds out who calls: it turns the credentials of a request
// (a client certificate, an OIDC token, a Kubernetes service account token)
// into a [Caller] whose identity is bound to a namespace, a service account, a
// trust domain and, where the credential proves it, a cluster.
//
// It owns the authenticators, the order in which they are asked ([Chain]), the
// cache of reviewed tokens and the question whether a caller may read secrets
// ([SecretAccess]). It does not own what a caller may do otherwise: the CSR
// service in package ca and the ADS server decide that. It does not know which
// clusters exist: clients come from lookup functions that cmd takes from
// package multicluster.
//
// Two rules hold everywhere. A credential that is wrong is
// [ErrUnauthenticated]; a credential that could not be checked is
// [ErrUnavailable], never one for the other, and the latter is never cached.
// And what is answered to a caller never says what exists: which clusters are
// joined, which accounts are there. That goes to the log.
package authn
