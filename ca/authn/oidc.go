package authn

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// JWTRule accepts the tokens of one OIDC issuer. Its JSON form is that of
// istiod's JWT_RULE (security.istio.io JWTRule) with a few fields of our own.
type JWTRule struct {
	// Issuer is the exact value of the claim iss. Required.
	Issuer string `json:"issuer"`
	// Audiences of which a token must have one. Required.
	Audiences []string `json:"audiences"`
	// JWKSURI is where the keys are; without it and without JWKS they are found
	// by the issuer's discovery document. https only.
	JWKSURI string `json:"jwksUri,omitempty"`
	// JWKS is a set of keys in JSON; then nothing is fetched.
	JWKS string `json:"jwks,omitempty"`
	// NamespaceClaim and ServiceAccountClaim name claims that hold the parts of
	// the identity. Without them the claim sub must read
	// system:serviceaccount:NAMESPACE:NAME.
	NamespaceClaim      string `json:"namespaceClaim,omitempty"`
	ServiceAccountClaim string `json:"serviceAccountClaim,omitempty"`
	// Cluster that the issuer's workloads belong to. Required: a token of an issuer
	// outside Kubernetes does not tell, what the caller says of itself proves
	// nothing, and an identity that holds in any cluster is one that can be
	// borrowed.
	Cluster mesh.ClusterID `json:"cluster"`
}

// UnmarshalJSON reads both spellings of protobuf's JSON form.
func (r *JWTRule) UnmarshalJSON(b []byte) error {
	type plain JWTRule
	both := struct {
		*plain
		Snake string `json:"jwks_uri"`
	}{plain: (*plain)(r)}
	if err := json.Unmarshal(b, &both); err != nil {
		return err
	}
	if r.JWKSURI == "" {
		r.JWKSURI = both.Snake
	}
	return nil
}

// ParseJWTRule reads a rule in its JSON form and checks it.
func ParseJWTRule(s string) (JWTRule, error) {
	var r JWTRule
	if err := json.Unmarshal([]byte(s), &r); err != nil {
		return JWTRule{}, fmt.Errorf("parse JWT rule: %w", err)
	}
	return r, r.check()
}

func (r JWTRule) check() error {
	switch {
	case r.Issuer == "":
		return errors.New("check JWT rule: field issuer: missing: set it to the claim iss of the tokens")
	case len(r.Audiences) == 0:
		return fmt.Errorf("check JWT rule of issuer %s: field audiences: missing: name the audience that tokens for this control plane have", r.Issuer)
	case r.Cluster == "":
		return fmt.Errorf("check JWT rule of issuer %s: field cluster: missing: name the cluster that its workloads belong to (their CLUSTER_ID)", r.Issuer)
	case r.JWKSURI != "" && !strings.HasPrefix(r.JWKSURI, "https://"):
		return fmt.Errorf("check JWT rule of issuer %s: field jwksUri: %q is not https", r.Issuer, r.JWKSURI)
	case r.JWKSURI == "" && r.JWKS == "" && !strings.HasPrefix(r.Issuer, "https://"):
		return fmt.Errorf("check JWT rule of issuer %s: keys cannot be discovered from an issuer that is no https URL: set jwksUri or jwks", r.Issuer)
	case (r.NamespaceClaim == "") != (r.ServiceAccountClaim == ""):
		return fmt.Errorf("check JWT rule of issuer %s: set both namespaceClaim and serviceAccountClaim or neither", r.Issuer)
	}
	return nil
}

// OIDCConfig configures [NewOIDC].
type OIDCConfig struct {
	Rules []JWTRule
	// TrustDomain is that of the identities of a cluster; false means that it is
	// not known (yet), and then nobody of that cluster is let in. Required.
	TrustDomain func(mesh.ClusterID) (string, bool)
	// Timeout bounds a fetch of keys. Default 5 s.
	Timeout time.Duration
	// Refresh is how old keys may get before they are fetched again. Default
	// 20 min. If that fails they serve for MaxStale in all (default 24 h).
	Refresh, MaxStale time.Duration
	// CheckAddress decides which addresses keys may be fetched from. Default
	// [CheckAddress].
	CheckAddress func(netip.Addr) error
	// TLS for fetching keys, nil for the system's roots.
	TLS *tls.Config

	Logger *zap.Logger
	Clock  func() time.Time
}

// OIDC authenticates tokens of issuers outside Kubernetes by their signature.
type OIDC struct {
	trustDomain func(mesh.ClusterID) (string, bool)
	now         func() time.Time
	rules       map[string]*issuerKeys // by issuer, constant after New
}

// NewOIDC returns an authenticator for the rules.
func NewOIDC(cfg OIDCConfig) (*OIDC, error) {
	if cfg.TrustDomain == nil {
		return nil, errors.New("new OIDC authenticator: TrustDomain is required")
	}
	cfg.Timeout = orDefault(cfg.Timeout, 5*time.Second)
	cfg.Refresh = orDefault(cfg.Refresh, 20*time.Minute)
	cfg.MaxStale = orDefault(cfg.MaxStale, 24*time.Hour)
	if cfg.CheckAddress == nil {
		cfg.CheckAddress = CheckAddress
	}
	cfg.Logger, cfg.Clock = loggerOrNop(cfg.Logger), clockOrSystem(cfg.Clock)
	o := &OIDC{trustDomain: cfg.TrustDomain, now: cfg.Clock, rules: map[string]*issuerKeys{}}
	client := guardedClient(cfg.CheckAddress, cfg.Timeout, &http.Transport{TLSClientConfig: cfg.TLS})
	for _, rule := range cfg.Rules {
		if err := rule.check(); err != nil {
			return nil, err
		}
		if _, twice := o.rules[rule.Issuer]; twice {
			return nil, fmt.Errorf("check JWT rules: issuer %s occurs twice", rule.Issuer)
		}
		keys, err := newIssuerKeys(rule, client, cfg)
		if err != nil {
			return nil, err
		}
		o.rules[rule.Issuer] = keys
	}
	return o, nil
}

// signatureAlgorithms are those accepted: asymmetric ones only, so that neither
// "none" nor a public key used as a shared secret can pass.
func signatureAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	}
}

// Authenticate implements [Authenticator].
func (o *OIDC) Authenticate(ctx context.Context, r Request) (Caller, error) {
	if r.Token == "" || len(o.rules) == 0 {
		return Caller{}, fmt.Errorf("authenticate OIDC token: %w", ErrNoCredential)
	}
	peek, err := peekToken(r.Token)
	if err != nil {
		return Caller{}, fmt.Errorf("read OIDC token: %w: %w", err, ErrUnauthenticated)
	}
	keys, ok := o.rules[peek.Issuer]
	if !ok {
		return Caller{}, fmt.Errorf("authenticate OIDC token: issuer %q has no rule: %w", clip(peek.Issuer), ErrNoCredential)
	}
	token, err := jwt.ParseSigned(r.Token, signatureAlgorithms())
	if err != nil || len(token.Headers) != 1 {
		return Caller{}, fmt.Errorf("parse OIDC token of issuer %s: %w: %w", peek.Issuer, errOr(err, "want one signature"), ErrUnauthenticated)
	}
	var std jwt.Claims
	custom := map[string]any{}
	if err := keys.verify(ctx, token, &std, &custom); err != nil {
		return Caller{}, err
	}
	if err := o.validate(keys.rule, std); err != nil {
		return Caller{}, fmt.Errorf("validate OIDC token of issuer %s: %w: %w", peek.Issuer, err, ErrUnauthenticated)
	}
	id, err := keys.rule.identity(std, custom)
	if err != nil {
		return Caller{}, fmt.Errorf("read OIDC token of issuer %s: %w: %w", peek.Issuer, err, ErrUnauthenticated)
	}
	var known bool
	if id.TrustDomain, known = o.trustDomain(keys.rule.Cluster); !known || id.TrustDomain == "" {
		return Caller{}, fmt.Errorf("trust domain of cluster %s is not known yet: %w", keys.rule.Cluster, ErrUnavailable)
	}
	return Caller{Identity: id, Cluster: keys.rule.Cluster, Expiry: std.Expiry.Time(), Source: SourceOIDC}, nil
}

func (o *OIDC) validate(rule JWTRule, c jwt.Claims) error {
	if c.Expiry == nil || c.Expiry.Time().IsZero() {
		return errors.New("token has no expiry")
	}
	return c.ValidateWithLeeway(jwt.Expected{Issuer: rule.Issuer, AnyAudience: rule.Audiences, Time: o.now()}, clockSkew)
}

// identity reads namespace and service account from the claims.
func (r JWTRule) identity(std jwt.Claims, custom map[string]any) (mesh.Identity, error) {
	var id mesh.Identity
	if r.NamespaceClaim != "" {
		id.Namespace, _ = custom[r.NamespaceClaim].(string)
		id.ServiceAccount, _ = custom[r.ServiceAccountClaim].(string)
	} else {
		parts := strings.Split(std.Subject, ":")
		if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
			return id, fmt.Errorf("claim sub %q is not system:serviceaccount:NAMESPACE:NAME", clip(std.Subject))
		}
		id.Namespace, id.ServiceAccount = parts[2], parts[3]
	}
	for _, part := range []string{id.Namespace, id.ServiceAccount} {
		if err := checkIdentityPart(part); err != nil {
			return id, fmt.Errorf("identity %q/%q: %w", clip(id.Namespace), clip(id.ServiceAccount), err)
		}
	}
	return id, nil
}

func errOr(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}
