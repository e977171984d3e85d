package authn

import (
	"context"
	"errors"
	"fmt"

	multierror "github.com/hashicorp/go-multierror"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What authentication ends with when it does not end with a caller. Errors of
// this package wrap exactly one of them.
var (
	// ErrNoCredential: the request carries nothing that this authenticator reads.
	ErrNoCredential = errors.New("no credential")
	// ErrUnauthenticated: the credential is not valid.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrUnavailable: whether the credential is valid could not be found out.
	ErrUnavailable = errors.New("authentication unavailable")
)

// Authenticator turns a request into its caller. An error is one of
// [ErrNoCredential], [ErrUnauthenticated] and [ErrUnavailable]; its text is
// for the log only.
type Authenticator interface {
	Authenticate(ctx context.Context, r Request) (Caller, error)
}

// Chain asks authenticators one after the other and takes the first caller it
// gets. The usual order is client certificate, OIDC rules, Kubernetes token.
type Chain []Authenticator

// Authenticate implements [Authenticator]. If nobody knows the caller the
// answer is ErrUnavailable as soon as one authenticator could not decide,
// because it might have known the caller.
func (c Chain) Authenticate(ctx context.Context, r Request) (Caller, error) {
	if r.Malformed != "" {
		return Caller{}, fmt.Errorf("read credentials: %s: %w", r.Malformed, ErrUnauthenticated)
	}
	var all *multierror.Error
	kind := ErrNoCredential
	for _, a := range c {
		caller, err := a.Authenticate(ctx, r)
		if err == nil {
			caller.Peer = r.Peer
			if err = checkCaller(caller); err == nil {
				return caller, nil
			}
		}
		kind = worse(kind, err)
		if !errors.Is(err, ErrNoCredential) {
			all = multierror.Append(all, err)
		}
	}
	if all == nil {
		return Caller{}, fmt.Errorf("the request carries no credential: %w", ErrNoCredential)
	}
	all.ErrorFormat = oneLine
	// The texts are kept, the kinds are not: errors.Is must find one kind only.
	return Caller{}, fmt.Errorf("%s: %w", all.Error(), kind)
}

// checkCaller holds every authenticator to what Caller promises.
func checkCaller(c Caller) error {
	if err := CheckIdentity(c.Identity); err != nil {
		return fmt.Errorf("%w: %w", err, ErrUnauthenticated)
	}
	if c.Expiry.IsZero() {
		return fmt.Errorf("credential of %s never expires: %w", c.Identity.SPIFFE(), ErrUnauthenticated)
	}
	return nil
}

func worse(kind, err error) error {
	switch {
	case errors.Is(err, ErrNoCredential):
		return kind
	case errors.Is(err, ErrUnavailable), errors.Is(kind, ErrUnavailable):
		return ErrUnavailable
	default:
		return ErrUnauthenticated
	}
}

func oneLine(errs []error) string {
	s := ""
	for i, err := range errs {
		if i > 0 {
			s += "; "
		}
		s += err.Error()
	}
	return s
}

// Status turns an authentication error into what the caller may read: what to
// put right, but nothing of what exists.
func Status(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return status.Error(codes.Unavailable, "the credential could not be checked now: try again")
	case errors.Is(err, ErrNoCredential):
		return status.Error(codes.Unauthenticated, "authentication required: "+
			"send a service account token for the audience of this control plane, or a client certificate of this mesh")
	default:
		return status.Error(codes.Unauthenticated, "authentication failure: "+
			"check the audience and expiry of the token and that clusterid names the cluster that issued it")
	}
}
