package multicluster

import (
	"crypto/tls"
	"maps"
	"slices"
	"strings"

	_ "k8s.io/client-go/plugin/pkg/client/auth/oidc" // used only by kubeconfigs for which Options.AuthProvider is set
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// userFields is the user part of a kubeconfig.
type userFields struct {
	ClientCertificate     string              `json:"client-certificate"`
	ClientCertificateData string              `json:"client-certificate-data"`
	ClientKey             string              `json:"client-key"`
	ClientKeyData         string              `json:"client-key-data"`
	Token                 string              `json:"token"`
	TokenFile             string              `json:"tokenFile"`
	Impersonate           string              `json:"as"`
	ImpersonateUID        string              `json:"as-uid"`
	ImpersonateGroups     []string            `json:"as-groups"`
	ImpersonateUserExtra  map[string][]string `json:"as-user-extra"`
	Username              string              `json:"username"`
	Password              string              `json:"password"`
	AuthProvider          *authProviderFields `json:"auth-provider"`
	Exec                  *execFields         `json:"exec"`
}

type authProviderFields struct {
	Name   string            `json:"name"`
	Config map[string]string `json:"config"`
}

type execFields struct {
	Command            string   `json:"command"`
	Args               []string `json:"args"`
	APIVersion         string   `json:"apiVersion"`
	InstallHint        string   `json:"installHint"`
	ProvideClusterInfo bool     `json:"provideClusterInfo"`
	Env                []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
}

// apply copies what is allowed into cfg.
func (u *userFields) apply(cfg *rest.Config, o Options) error {
	for _, step := range []func(*rest.Config, Options) error{
		u.plugins, u.certificate, u.tokens, u.basic, u.impersonate,
	} {
		if err := step(cfg, o); err != nil {
			return err
		}
	}
	if u.Token == "" && u.TokenFile == "" && u.Username == "" && u.AuthProvider == nil && u.Exec == nil &&
		u.ClientCertificate == "" && u.ClientCertificateData == "" {
		return refuse("", "holds no credential: give a token, or client-certificate-data and client-key-data")
	}
	return nil
}

// plugins reads the ways in which a client gets a credential by running something.
func (u *userFields) plugins(cfg *rest.Config, o Options) error {
	if u.Exec != nil {
		if !o.Exec {
			return notAllowed("exec", "it runs a program in the control plane; use a token, as create-remote-secret makes one", "exec")
		}
		if u.AuthProvider != nil {
			return refuse("exec", "contradicts auth-provider")
		}
		cfg.ExecProvider = u.Exec.provider()
	}
	if u.AuthProvider != nil {
		if !o.AuthProvider {
			return notAllowed("auth-provider", "it makes requests of its own and may read files; use a token, as create-remote-secret makes one", "auth-provider")
		}
		if u.AuthProvider.Name != "oidc" {
			return refuse("auth-provider.name", "Kubernetes clients have only oidc left; use exec or a token")
		}
		cfg.AuthProvider = &clientcmdapi.AuthProviderConfig{Name: "oidc", Config: maps.Clone(u.AuthProvider.Config)}
	}
	return nil
}

func (e *execFields) provider() *clientcmdapi.ExecConfig {
	out := &clientcmdapi.ExecConfig{
		Command: e.Command, Args: slices.Clone(e.Args), APIVersion: e.APIVersion,
		InstallHint: e.InstallHint, ProvideClusterInfo: e.ProvideClusterInfo,
		// A server has nobody to ask.
		InteractiveMode: clientcmdapi.NeverExecInteractiveMode, StdinUnavailable: true,
	}
	for _, v := range e.Env {
		out.Env = append(out.Env, clientcmdapi.ExecEnvVar{Name: v.Name, Value: v.Value})
	}
	return out
}

// certificate reads the client certificate and its key.
func (u *userFields) certificate(cfg *rest.Config, o Options) error {
	if u.ClientCertificate != "" {
		if !o.ClientCertificate {
			return notAllowed("client-certificate", "it names a file; put the content into client-certificate-data", "clientCertificate")
		}
		if err := absolute("client-certificate", u.ClientCertificate); err != nil {
			return err
		}
		cfg.CertFile = u.ClientCertificate
	}
	if u.ClientKey != "" {
		if !o.ClientKey {
			return notAllowed("client-key", "it names a file; put the content into client-key-data", "clientKey")
		}
		if err := absolute("client-key", u.ClientKey); err != nil {
			return err
		}
		cfg.KeyFile = u.ClientKey
	}
	var err error
	if cfg.CertData, err = decode("client-certificate-data", u.ClientCertificateData); err != nil {
		return err
	}
	if cfg.KeyData, err = decode("client-key-data", u.ClientKeyData); err != nil {
		return err
	}
	hasCert, hasKey := len(cfg.CertData) > 0 || cfg.CertFile != "", len(cfg.KeyData) > 0 || cfg.KeyFile != ""
	switch {
	case hasCert && !hasKey:
		return refuse("client-key-data", "is missing, but there is a client certificate")
	case hasKey && !hasCert:
		return refuse("client-certificate-data", "is missing, but there is a client key")
	case len(cfg.CertData) > 0 && len(cfg.KeyData) > 0:
		if _, err := tls.X509KeyPair(cfg.CertData, cfg.KeyData); err != nil {
			return refuse("client-certificate-data", "does not belong to client-key-data, or one of them is not in PEM form")
		}
	}
	return nil
}

func (u *userFields) tokens(cfg *rest.Config, o Options) error {
	if u.TokenFile != "" {
		if !o.TokenFile {
			return notAllowed("tokenFile", "it names a file; put the content into token", "tokenFile")
		}
		if err := absolute("tokenFile", u.TokenFile); err != nil {
			return err
		}
		cfg.BearerTokenFile = u.TokenFile
	}
	if strings.ContainsFunc(u.Token, notPrintable) {
		return refuse("token", "holds white space or control characters; put the token there alone")
	}
	cfg.BearerToken = u.Token
	return nil
}

func (u *userFields) basic(cfg *rest.Config, o Options) error {
	if u.Username == "" && u.Password == "" {
		return nil
	}
	if !o.Basic {
		return notAllowed("username", "Kubernetes has given up passwords; use a token", "basic")
	}
	if u.Token != "" || u.TokenFile != "" {
		return refuse("username", "contradicts the token that is given too")
	}
	cfg.Username, cfg.Password = u.Username, u.Password
	return nil
}

// impersonate needs no option: it asks the remote server, under its own rules,
// for other rights there.
func (u *userFields) impersonate(cfg *rest.Config, _ Options) error {
	if u.Impersonate == "" && (u.ImpersonateUID != "" || len(u.ImpersonateGroups) > 0 || len(u.ImpersonateUserExtra) > 0) {
		return refuse("as", "is missing, but as-uid, as-groups or as-user-extra is there")
	}
	values := append([]string{u.Impersonate, u.ImpersonateUID}, u.ImpersonateGroups...)
	for k, v := range u.ImpersonateUserExtra {
		values = append(append(values, k), v...)
	}
	if slices.ContainsFunc(values, func(s string) bool { return strings.ContainsAny(s, "\r\n\x00") }) {
		return refuse("as", "whom to impersonate holds control characters")
	}
	cfg.Impersonate = rest.ImpersonationConfig{
		UserName: u.Impersonate, UID: u.ImpersonateUID,
		Groups: slices.Clone(u.ImpersonateGroups), Extra: maps.Clone(u.ImpersonateUserExtra),
	}
	return nil
}
