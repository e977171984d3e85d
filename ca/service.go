package ca

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// Keys of a request's metadata.
const (
	metaCertSigner   = "CertSigner"
	metaImpersonated = "ImpersonatedIdentity"
)

// Rates that refuse a flood and no mesh: behind a NAT a whole cluster shares an
// address, and a large deployment shares an identity.
const (
	defaultPeerRate, defaultPeerBurst         = 500, 5000
	defaultIdentityRate, defaultIdentityBurst = 200, 5000
)

// ServiceConfig configures [NewService].
type ServiceConfig struct {
	// Authority signs. Required.
	Authority *Authority
	// Authenticator says who calls. Required.
	Authenticator authn.Authenticator
	// Holders is told who was given which roots; may be nil.
	Holders *Holders
	// NodeAccounts may ask for identities of their node's pods, found by Pods.
	// Without either nobody may.
	NodeAccounts []NodeAccount
	Pods         PodLookup
	// PeerRate and IdentityRate bound requests per second and address (an IPv6
	// /64 counts as one) and per identity, after bursts. Default 500 after
	// 5,000 and 200 after 5,000; negative is no bound.
	PeerRate, IdentityRate   float64
	PeerBurst, IdentityBurst int

	// Logger; a line per issued certificate goes to its child "audit".
	Logger     *zap.Logger
	Clock      func() time.Time
	Registerer prometheus.Registerer
}

// Service is the gRPC service istio.v1.auth.IstioCertificateService.
type Service struct {
	securityapi.UnimplementedIstioCertificateServiceServer
	cfg        ServiceConfig
	log, audit *zap.Logger
	now        func() time.Time
	metrics    *serviceMetrics
	peers      *keyedLimiter[netip.Addr]
	identities *keyedLimiter[mesh.Identity]
	node       impersonation
	// refusals bounds the log lines that strangers can cause.
	refusals *rate.Limiter
}

// NewService returns the CSR service.
func NewService(cfg ServiceConfig) (*Service, error) {
	if cfg.Authority == nil || cfg.Authenticator == nil {
		return nil, errors.New("new CSR service: Authority and Authenticator are required")
	}
	if cfg.PeerRate == 0 {
		cfg.PeerRate, cfg.PeerBurst = defaultPeerRate, max(cfg.PeerBurst, defaultPeerBurst)
	}
	if cfg.IdentityRate == 0 {
		cfg.IdentityRate, cfg.IdentityBurst = defaultIdentityRate, max(cfg.IdentityBurst, defaultIdentityBurst)
	}
	metrics, err := newServiceMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	log := loggerOrNop(cfg.Logger)
	s := &Service{
		cfg: cfg, log: log, audit: log.Named("audit"), now: clockOrSystem(cfg.Clock), metrics: metrics,
		peers:      newKeyedLimiter[netip.Addr](cfg.PeerRate, max(cfg.PeerBurst, 1)),
		identities: newKeyedLimiter[mesh.Identity](cfg.IdentityRate, max(cfg.IdentityBurst, 1)),
		node:       impersonation{trusted: map[NodeAccount]bool{}, pods: cfg.Pods},
		refusals:   rate.NewLimiter(20, 100),
	}
	for _, a := range cfg.NodeAccounts {
		s.node.trusted[a] = true
	}
	return s, nil
}

// Register adds the service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	securityapi.RegisterIstioCertificateServiceServer(r, s)
}

// CreateCertificate signs a certificate for the caller's own identity. The
// answer is a list of PEM texts: the certificate, each intermediate, and last
// all roots in one.
func (s *Service) CreateCertificate(ctx context.Context, req *securityapi.IstioCertificateRequest) (resp *securityapi.IstioCertificateResponse, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in CreateCertificate", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			resp, err = nil, status.Error(codes.Internal, "internal error")
		}
	}()
	s.metrics.csr.Inc()
	offered := authn.FromContext(ctx)
	if !s.peers.allow(authn.PeerGroup(offered.Peer), s.now()) {
		return nil, s.tooMany("this address")
	}
	caller, err := s.cfg.Authenticator.Authenticate(ctx, offered)
	if err != nil {
		s.metrics.authnFailed.Inc()
		s.refuse("certificate request: caller not authenticated", zap.Stringer("peer", offered.Peer), zap.Error(err))
		return nil, authn.Status(err)
	}
	if !s.identities.allow(caller.Identity, s.now()) {
		return nil, s.tooMany("this identity")
	}
	identity, err := s.identityFor(caller, req.GetMetadata())
	if err != nil {
		return nil, err
	}
	cert, err := s.cfg.Authority.Sign(SignRequest{
		CSR: []byte(req.GetCsr()), Identity: identity, Lifetime: seconds(req.GetValidityDuration()),
	})
	if err != nil {
		return nil, s.signError(caller, err)
	}
	s.issued(caller, identity, cert)
	return &securityapi.IstioCertificateResponse{CertChain: cert.Chain}, nil
}

// identityFor reads the metadata of a request: whose certificate is it?
func (s *Service) identityFor(c authn.Caller, md *structpb.Struct) (mesh.Identity, error) {
	if signer := metaString(md, metaCertSigner); signer != "" {
		s.metrics.csrBad.Inc()
		return mesh.Identity{}, status.Error(codes.InvalidArgument,
			"no external certificate signer is configured: leave ISTIO_META_CERT_SIGNER of the workload empty")
	}
	if _, asked := md.GetFields()[metaImpersonated]; !asked || metaString(md, metaImpersonated) == "" {
		return c.Identity, nil
	}
	wanted := metaString(md, metaImpersonated)
	id, err := s.node.check(c, wanted)
	if err != nil {
		s.metrics.idBad.Inc()
		if len(wanted) > 512 {
			wanted = wanted[:512]
		}
		s.log.Warn("certificate request: impersonation denied",
			zap.Stringer("caller", c), zap.String("wanted", wanted), zap.Error(err))
		return mesh.Identity{}, status.Error(codes.PermissionDenied, errImpersonation.Error())
	}
	return id, nil
}

// metaString reads a string field. A field of another type reads as a text that
// is no valid value, so that it is refused rather than overlooked.
func metaString(md *structpb.Struct, key string) string {
	v, ok := md.GetFields()[key]
	if !ok || v == nil {
		return ""
	}
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return k.StringValue
	case *structpb.Value_NullValue, nil:
		return ""
	}
	return "(not a string)"
}

// seconds turns the requested validity into a duration. Zero and negative mean
// the default; what does not fit in a duration is longer than any cap.
func seconds(n int64) time.Duration {
	switch {
	case n <= 0:
		return 0
	case n > math.MaxInt64/int64(time.Second):
		return math.MaxInt64
	}
	return time.Duration(n) * time.Second
}

// signError chooses what the caller hears: all about its own CSR, nothing about
// the state of the authority.
func (s *Service) signError(c authn.Caller, err error) error {
	switch {
	case errors.Is(err, ErrBadCSR):
		s.metrics.csrBad.Inc()
		s.refuse("certificate request: bad CSR", zap.Stringer("caller", c), zap.Error(err))
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, ErrNotReady), errors.Is(err, ErrIssuerExpired):
		s.metrics.signFailed.Inc()
		s.refuse("certificate request: the authority cannot sign: see its earlier messages", zap.Stringer("caller", c), zap.Error(err))
		return status.Error(codes.Unavailable, "the mesh CA cannot issue certificates now: try again, and tell the operator of the control plane if this lasts")
	}
	s.metrics.signFailed.Inc()
	s.log.Error("certificate request: signing failed", zap.Stringer("caller", c), zap.Error(err))
	return status.Error(codes.Internal, "signing failed")
}

func (s *Service) tooMany(who string) error {
	s.metrics.limited.Inc()
	return status.Error(codes.ResourceExhausted, fmt.Sprintf("too many certificate requests from %s: slow down", who))
}

// refuse logs a refusal, within bounds.
func (s *Service) refuse(msg string, fields ...zap.Field) {
	if s.refusals.AllowN(s.now(), 1) {
		s.log.Warn(msg, fields...)
	}
}

// issued records a certificate: the audit line, the metric, who holds what.
func (s *Service) issued(c authn.Caller, id mesh.Identity, cert *Certificate) {
	s.metrics.issued.Inc()
	if s.cfg.Holders != nil {
		key := c.Key()
		if id != c.Identity {
			key += "=" + id.SPIFFE() // a node proxy holds many
		}
		s.cfg.Holders.record(key, cert)
	}
	s.audit.Info("certificate issued",
		zap.String("identity", id.SPIFFE()),
		zap.String("cluster", string(c.Cluster)),
		zap.String("serial", fmt.Sprintf("%032x", cert.Serial)),
		zap.Time("notAfter", cert.NotAfter),
		zap.String("issuer", cert.issuer.ID()),
		zap.String("askedBy", c.Identity.SPIFFE()),
		zap.String("credential", string(c.Source)),
		zap.String("pod", c.PodName), zap.String("podUID", c.PodUID), zap.String("node", c.Node),
		zap.Stringer("peer", c.Peer))
}
