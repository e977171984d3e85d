package serve

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/authn"
)

// Security are the settings of the CA, of TLS and of who may ask for what. They
// come from the environment, under istiod's names.
type Security struct {
	// CADir holds issuing material (ROOT_CA_DIR); "" means the two places that
	// Istio's chart mounts it at.
	CADir string
	// CertTTL is given to workloads that ask for no lifetime
	// (DEFAULT_WORKLOAD_CERT_TTL), MaxCertTTL caps what is asked for
	// (MAX_WORKLOAD_CERT_TTL).
	CertTTL, MaxCertTTL time.Duration
	// SelfSignedTTL is the lifetime of a self-signed root
	// (CITADEL_SELF_SIGNED_CA_CERT_TTL), SelfSignedGrace how many percent of it
	// before its end it is replaced (CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE).
	SelfSignedTTL   time.Duration
	SelfSignedGrace int
	// UseCACerts keeps a self-signed root in Secret cacerts instead of
	// istio-ca-secret (USE_CACERTS_FOR_SELF_SIGNED_CA).
	UseCACerts bool
	// CACertFile, TLSCertFile and TLSKeyFile are a certificate to serve TLS with
	// that somebody else issues, and the roots it verifies under (--caCertFile,
	// --tlsCertFile, --tlsKeyFile). All three or none; without them those at
	// istiod's usual place count, if they are there.
	CACertFile, TLSCertFile, TLSKeyFile string
	// Audiences of which a token must have one (TOKEN_AUDIENCES).
	Audiences []string
	// JWTRule accepts tokens of an OIDC issuer (JWT_RULE), in JSON.
	JWTRule string
	// NodeAccounts may ask for identities of their node's pods (CA_TRUSTED_NODE_ACCOUNTS).
	NodeAccounts string
	// CustomHosts are further DNS names of the control plane (ISTIOD_CUSTOM_HOST).
	CustomHosts []string
	// CertProvider is istiod's PILOT_CERT_PROVIDER; only istiod is there.
	CertProvider string
	// MinTLS is the least version of TLS: 1.2 or 1.3.
	MinTLS string
	// StreamsPerPeer bounds the streams from one address, 0 is no bound.
	StreamsPerPeer int
	// Clock of the CA and of everything that judges certificates; nil is the
	// system's. It is for tests: no flag sets it.
	Clock func() time.Time
	// DebugNamespaces may see all of /debug, beside the system namespace
	// (DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES).
	DebugNamespaces []string
}

// defaultStreamsPerPeer is for floods, not for fairness: all proxies of a remote
// cluster may come through one gateway.
const defaultStreamsPerPeer = 20_000

func securityDefaults(getenv func(string) string) Security {
	grace, _ := strconv.Atoi(getenv("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE")) // 0 is the default
	return Security{
		CADir:           getenv("ROOT_CA_DIR"),
		CertTTL:         duration(getenv("DEFAULT_WORKLOAD_CERT_TTL"), 24*time.Hour),
		MaxCertTTL:      duration(getenv("MAX_WORKLOAD_CERT_TTL"), 90*24*time.Hour),
		SelfSignedTTL:   duration(getenv("CITADEL_SELF_SIGNED_CA_CERT_TTL"), 10*365*24*time.Hour),
		SelfSignedGrace: grace,
		UseCACerts:      isTrue(getenv("USE_CACERTS_FOR_SELF_SIGNED_CA")),
		Audiences:       split(or(getenv("TOKEN_AUDIENCES"), authn.DefaultAudience)),
		JWTRule:         getenv("JWT_RULE"),
		NodeAccounts:    getenv("CA_TRUSTED_NODE_ACCOUNTS"),
		CustomHosts:     split(getenv("ISTIOD_CUSTOM_HOST")),
		CertProvider:    or(getenv("PILOT_CERT_PROVIDER"), "istiod"),
		MinTLS:          "1.2",
		StreamsPerPeer:  defaultStreamsPerPeer,
		DebugNamespaces: split(getenv("DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES")),
	}
}

func (s *Security) bind(fs *pflag.FlagSet) {
	fs.StringVar(&s.MinTLS, "tls-min-version", s.MinTLS, "least version of TLS of proxies: 1.2 or 1.3")
	fs.StringVar(&s.CACertFile, "caCertFile", s.CACertFile, "file with the roots that --tlsCertFile verifies under")
	fs.StringVar(&s.TLSCertFile, "tlsCertFile", s.TLSCertFile, "file with a certificate to serve TLS with, instead of one of the CA of the mesh")
	fs.StringVar(&s.TLSKeyFile, "tlsKeyFile", s.TLSKeyFile, "file with the key of --tlsCertFile")
	fs.IntVar(&s.StreamsPerPeer, "maxStreamsPerPeer", s.StreamsPerPeer, "most streams from one address over TLS, 0 = no bound")
}

// validate reads what is text, so that a mistake is found before anything runs.
func (s *Security) validate() error {
	if _, err := s.minTLS(); err != nil {
		return err
	}
	if _, err := s.jwtRules(); err != nil {
		return fmt.Errorf("JWT_RULE: %w", err)
	}
	if _, err := ca.ParseNodeAccounts(s.NodeAccounts); err != nil {
		return fmt.Errorf("CA_TRUSTED_NODE_ACCOUNTS: %w", err)
	}
	if given := len(split(s.CACertFile + "," + s.TLSCertFile + "," + s.TLSKeyFile)); given != 0 && given != 3 {
		return errors.New("--caCertFile, --tlsCertFile and --tlsKeyFile: give all three or none")
	}
	if s.CertTTL <= 0 || s.MaxCertTTL <= 0 {
		return errors.New("DEFAULT_WORKLOAD_CERT_TTL and MAX_WORKLOAD_CERT_TTL must be positive, such as 24h")
	}
	return nil
}

// Where istiod's chart mounts a certificate to serve TLS with: Secret istiod-tls,
// and the roots either from ConfigMap istio-ca-root-cert or out of that Secret.
const (
	mountedTLSCert = "./var/run/secrets/istiod/tls/tls.crt"
	mountedTLSKey  = "./var/run/secrets/istiod/tls/tls.key"
	mountedCA      = "./var/run/secrets/istiod/ca/root-cert.pem"
	mountedCAToo   = "./var/run/secrets/istiod/tls/ca.crt"
)

// servingFiles are the files of a certificate to serve TLS with, nil if there
// are none.
func (s *Security) servingFiles(exists func(path string) bool) *ca.ServingFiles {
	if s.TLSCertFile != "" {
		return &ca.ServingFiles{Cert: s.TLSCertFile, Key: s.TLSKeyFile, Roots: s.CACertFile}
	}
	for _, roots := range []string{mountedCA, mountedCAToo} {
		if exists(mountedTLSCert) && exists(mountedTLSKey) && exists(roots) {
			return &ca.ServingFiles{Cert: mountedTLSCert, Key: mountedTLSKey, Roots: roots}
		}
	}
	return nil
}

// isTrue reads a boolean variable as istiod does; what is none counts as unset.
func isTrue(s string) bool {
	v, err := strconv.ParseBool(s)
	return err == nil && v
}

// minTLS reads the least version in the spellings of istiod, of its mesh
// configuration and of Kubernetes.
func (s *Security) minTLS() (uint16, error) {
	switch strings.ToUpper(strings.NewReplacer("_", "", ".", "").Replace(s.MinTLS)) {
	case "", "12", "TLSV12", "VERSIONTLS12", "TLSAUTO":
		return tls.VersionTLS12, nil
	case "13", "TLSV13", "VERSIONTLS13":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("--tls-min-version %q: want 1.2 or 1.3", s.MinTLS)
}

func (s *Security) jwtRules() ([]authn.JWTRule, error) {
	if strings.TrimSpace(s.JWTRule) == "" {
		return nil, nil
	}
	r, err := authn.ParseJWTRule(s.JWTRule)
	if err != nil {
		return nil, err
	}
	return []authn.JWTRule{r}, nil
}

// split reads a list with commas.
func split(s string) []string {
	var out []string
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
