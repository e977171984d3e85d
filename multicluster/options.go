package multicluster

import (
	"fmt"
	"slices"
	"strings"
)

// Options allow what [Sanitize] refuses. The zero value allows nothing; every
// field that is set lets whoever may write a kubeconfig do more to the control
// plane itself.
type Options struct {
	// Exec lets a kubeconfig run a program in the control plane.
	Exec bool
	// AuthProvider lets it use the OpenID Connect plugin, the only auth-provider
	// that Kubernetes clients still have.
	AuthProvider bool
	// TokenFile, ClientCertificate, ClientKey and CertificateAuthority let it name
	// files of the control plane, by absolute path.
	TokenFile, ClientCertificate, ClientKey, CertificateAuthority bool
	// InsecureSkipTLSVerify lets it switch the verification of the server off.
	InsecureSkipTLSVerify bool
	// HTTP lets it reach the server without TLS.
	HTTP bool
	// ProxyURL lets it send everything through a proxy of its choice.
	ProxyURL bool
	// Basic lets it authenticate with user name and password.
	Basic bool
	// Loopback lets host names resolve to loopback addresses. A server that is
	// written as a loopback address or as localhost needs no option.
	Loopback bool
	// LinkLocal lets connections go to link-local addresses and to the well-known
	// metadata services of cloud providers.
	LinkLocal bool
}

// option is one word of PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS.
type option struct {
	name string
	set  func(*Options)
}

// options lists the words, istiod's first. Comparison ignores case, "-" and "_".
func options() []option {
	return []option{
		{"exec", func(o *Options) { o.Exec = true }},
		{"tokenFile", func(o *Options) { o.TokenFile = true }},
		{"clientCertificate", func(o *Options) { o.ClientCertificate = true }},
		{"clientKey", func(o *Options) { o.ClientKey = true }},
		{"oidc", func(o *Options) { o.AuthProvider = true }},
		{"auth-provider", func(o *Options) { o.AuthProvider = true }},
		{"certificate-authority", func(o *Options) { o.CertificateAuthority = true }},
		{"insecure-skip-tls-verify", func(o *Options) { o.InsecureSkipTLSVerify = true }},
		{"http", func(o *Options) { o.HTTP = true }},
		{"proxy-url", func(o *Options) { o.ProxyURL = true }},
		{"basic", func(o *Options) { o.Basic = true }},
		{"loopback", func(o *Options) { o.Loopback = true }},
		{"link-local", func(o *Options) { o.LinkLocal = true }},
		// Kubernetes clients no longer have these plugins. The words are known so
		// that an installation that carries them starts.
		{"gcp", func(*Options) {}},
		{"azure", func(*Options) {}},
		{"openstack", func(*Options) {}},
	}
}

// ParseOptions reads the comma-separated list of
// PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS. An unknown word is an error,
// so that a typing mistake neither allows nor silently refuses anything.
func ParseOptions(list string) (Options, error) {
	var o Options
	known := options()
	for word := range strings.SplitSeq(list, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		i := slices.IndexFunc(known, func(k option) bool { return plain(k.name) == plain(word) })
		if i < 0 {
			names := make([]string, 0, len(known))
			for _, k := range known {
				names = append(names, k.name)
			}
			return Options{}, fmt.Errorf("parse kubeconfig options: unknown option %q, known are %s", word, strings.Join(names, ", "))
		}
		known[i].set(&o)
	}
	return o, nil
}

func plain(s string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s))
}
