package multicluster

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// MaxKubeconfig is the largest kubeconfig that is read, in bytes. It is the
// size limit of a Kubernetes Secret too.
const MaxKubeconfig = 1 << 20

// kubeconfig is as much of the file format as is read at all: a field that is
// not here cannot reach a client. The format is that of
// k8s.io/client-go/tools/clientcmd/api/v1.
type kubeconfig struct {
	APIVersion     string         `json:"apiVersion"`
	Kind           string         `json:"kind"`
	CurrentContext string         `json:"current-context"`
	Clusters       []namedCluster `json:"clusters"`
	Users          []namedUser    `json:"users"`
	Contexts       []namedContext `json:"contexts"`
}

type namedCluster struct {
	Name    string        `json:"name"`
	Cluster clusterFields `json:"cluster"`
}

type namedUser struct {
	Name string     `json:"name"`
	User userFields `json:"user"`
}

type namedContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
}

type clusterFields struct {
	Server                   string `json:"server"`
	TLSServerName            string `json:"tls-server-name"`
	InsecureSkipTLSVerify    bool   `json:"insecure-skip-tls-verify"`
	CertificateAuthority     string `json:"certificate-authority"`
	CertificateAuthorityData string `json:"certificate-authority-data"`
	ProxyURL                 string `json:"proxy-url"`
	DisableCompression       bool   `json:"disable-compression"`
}

// Sanitize reads a kubeconfig that somebody else wrote and builds a client
// configuration from an allowlist of its fields: an https server with its
// certificate authority and TLS server name, a token, a client certificate with
// its key, both inline, and whom to impersonate (that is for the remote server
// to permit, and can only be done to that server). Of several contexts only the
// current one is looked at.
//
// What else a kubeconfig can ask for is refused by the name of its field unless
// an option allows it. Sanitize executes nothing, opens no file and resolves no
// name; errors name the field and the remedy and never hold a credential.
//
// The configuration dials through a filter that refuses link-local and metadata
// addresses, and loopback unless the server is written as a loopback address,
// after every resolution of a name and for every connection. Redirects are not
// followed.
func Sanitize(raw []byte, o Options) (*rest.Config, error) {
	file, err := parseKubeconfig(raw)
	if err != nil {
		return nil, err
	}
	cluster, user, err := file.current()
	if err != nil {
		return nil, err
	}
	server, err := cluster.Cluster.server(o)
	if err != nil {
		return nil, inField("clusters["+cluster.Name+"].cluster", err)
	}
	cfg := &rest.Config{Host: server.String(), DisableCompression: cluster.Cluster.DisableCompression}
	if cfg.TLSClientConfig, err = cluster.Cluster.tls(o); err != nil {
		return nil, inField("clusters["+cluster.Name+"].cluster", err)
	}
	hosts := []string{server.Hostname()}
	if cluster.Cluster.ProxyURL != "" {
		proxy, err := cluster.Cluster.proxy(o)
		if err != nil {
			return nil, inField("clusters["+cluster.Name+"].cluster.proxy-url", err)
		}
		cfg.Proxy = http.ProxyURL(proxy)
		hosts = append(hosts, proxy.Hostname())
	}
	if err := user.User.apply(cfg, o); err != nil {
		return nil, inField("users["+user.Name+"].user", err)
	}
	cfg.Dial = newDialer(o, hosts...)
	cfg.WrapTransport = func(rt http.RoundTripper) http.RoundTripper { return noRedirects{rt} }
	return cfg, nil
}

// fieldError is a refusal. Field is a path within the kubeconfig.
type fieldError struct{ field, message string }

func (e *fieldError) Error() string {
	if e.field == "" {
		return "read kubeconfig: " + e.message
	}
	return "read kubeconfig: " + e.field + ": " + e.message
}

func refuse(field, format string, args ...any) error {
	return &fieldError{field, fmt.Sprintf(format, args...)}
}

// inField puts a path before the field that an error names.
func inField(path string, err error) error {
	var f *fieldError
	if !errors.As(err, &f) {
		return err
	}
	path = printable(path)
	if f.field != "" {
		path += "." + f.field
	}
	return &fieldError{path, f.message}
}

// notAllowed refuses a field for which there is an option.
func notAllowed(field, why, option string) error {
	return refuse(field, "refused: %s (the option %q of PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS would allow it)", why, option)
}

// The parser's messages may quote the document, hence credentials. Only the line
// number and the names of our own fields are taken from them.
var (
	yamlLine  = regexp.MustCompile(`\bline (\d+)\b`)
	jsonField = regexp.MustCompile(`Go struct field [A-Za-z]+\.([a-zA-Z.-]+) of type (\S+)`)
)

func parseKubeconfig(raw []byte) (*kubeconfig, error) {
	switch {
	case len(raw) > MaxKubeconfig:
		return nil, refuse("", "%d bytes are more than the limit of %d", len(raw), MaxKubeconfig)
	case len(strings.TrimSpace(string(raw))) == 0:
		return nil, refuse("", "it is empty")
	}
	var f kubeconfig
	// A field given twice has two readers see two things. Unknown fields are
	// nothing to complain of: they go no further than this.
	_, err := yaml.YAMLToJSONStrict(raw)
	if err == nil {
		err = yaml.Unmarshal(raw, &f)
	}
	if err != nil {
		if m := jsonField.FindStringSubmatch(err.Error()); m != nil {
			return nil, refuse(m[1], "must be a %s", yamlKind(m[2]))
		}
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			return nil, refuse("", "it is not valid YAML at line %s", m[1])
		}
		return nil, refuse("", "it is not a YAML document of kind Config")
	}
	if (f.Kind != "" && f.Kind != "Config") || (f.APIVersion != "" && f.APIVersion != "v1") {
		return nil, refuse("kind", "must be Config of apiVersion v1")
	}
	return &f, nil
}

// yamlKind is what YAML calls values of a Go type.
func yamlKind(t string) string {
	switch {
	case strings.HasPrefix(t, "[]"):
		return "list"
	case t == "string", t == "bool":
		return t
	}
	return "mapping"
}

// current returns cluster and user of the current context, or of the only one.
func (f *kubeconfig) current() (*namedCluster, *namedUser, error) {
	context := f.CurrentContext
	if context == "" {
		if len(f.Contexts) != 1 {
			return nil, nil, refuse("current-context", "is missing, and there are %d contexts to choose from", len(f.Contexts))
		}
		context = f.Contexts[0].Name
	}
	for i := range f.Contexts {
		c := &f.Contexts[i]
		if c.Name != context {
			continue
		}
		path := printable("contexts[" + c.Name + "].context")
		cluster, user := f.cluster(c.Context.Cluster), f.user(c.Context.User)
		if cluster == nil {
			return nil, nil, refuse(path+".cluster", "names a cluster that is not in clusters")
		}
		if user == nil {
			return nil, nil, refuse(path+".user", "names a user that is not in users")
		}
		return cluster, user, nil
	}
	return nil, nil, refuse("current-context", "names a context that is not in contexts")
}

func (f *kubeconfig) cluster(name string) *namedCluster {
	for i := range f.Clusters {
		if f.Clusters[i].Name == name {
			return &f.Clusters[i]
		}
	}
	return nil
}

func (f *kubeconfig) user(name string) *namedUser {
	for i := range f.Users {
		if f.Users[i].Name == name {
			return &f.Users[i]
		}
	}
	return nil
}

// clusterName is what a file calls its cluster: by the current context, else by
// the first, else the first cluster. "" if it names none.
func (f *kubeconfig) clusterName() string {
	for _, c := range f.Contexts {
		if c.Name == f.CurrentContext && c.Context.Cluster != "" {
			return c.Context.Cluster
		}
	}
	for _, c := range f.Contexts {
		if c.Context.Cluster != "" {
			return c.Context.Cluster
		}
	}
	if len(f.Clusters) > 0 {
		return f.Clusters[0].Name
	}
	return ""
}

// server checks the address of the API server.
func (c *clusterFields) server(o Options) (*url.URL, error) {
	if c.Server == "" {
		return nil, refuse("server", "is missing: write https://HOST:PORT")
	}
	u, err := url.Parse(c.Server)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return nil, refuse("server", "is not a URL: write https://HOST:PORT")
	case u.Scheme == "http" && !o.HTTP:
		return nil, notAllowed("server", "plain http shows the credential to the network; write https", "http")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, refuse("server", "must begin with https://")
	case u.User != nil:
		return nil, refuse("server", "must not hold a user: use users[].user.token")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, refuse("server", "must not hold a query or a fragment")
	}
	if err := checkLiteral(u.Hostname(), o); err != nil {
		return nil, refuse("server", "%v", err)
	}
	return u, nil
}

// tls reads how the server is verified.
func (c *clusterFields) tls(o Options) (rest.TLSClientConfig, error) {
	out := rest.TLSClientConfig{ServerName: c.TLSServerName}
	if strings.ContainsFunc(c.TLSServerName, notPrintable) {
		return out, refuse("tls-server-name", "holds white space or control characters")
	}
	if c.InsecureSkipTLSVerify {
		if !o.InsecureSkipTLSVerify {
			return out, notAllowed("insecure-skip-tls-verify", "anybody could answer for the server; give certificate-authority-data", "insecure-skip-tls-verify")
		}
		if c.CertificateAuthorityData != "" || c.CertificateAuthority != "" {
			return out, refuse("insecure-skip-tls-verify", "contradicts the certificate authority that is given too")
		}
		out.Insecure = true
	}
	if c.CertificateAuthority != "" {
		if !o.CertificateAuthority {
			return out, notAllowed("certificate-authority", "it names a file; put the content into certificate-authority-data", "certificate-authority")
		}
		if err := absolute("certificate-authority", c.CertificateAuthority); err != nil {
			return out, err
		}
		out.CAFile = c.CertificateAuthority
	}
	if c.CertificateAuthorityData != "" {
		data, err := decode("certificate-authority-data", c.CertificateAuthorityData)
		if err != nil {
			return out, err
		}
		if !x509.NewCertPool().AppendCertsFromPEM(data) {
			return out, refuse("certificate-authority-data", "holds no certificate in PEM form")
		}
		out.CAData = data
	}
	return out, nil
}

func (c *clusterFields) proxy(o Options) (*url.URL, error) {
	if !o.ProxyURL {
		return nil, notAllowed("", "it sends the traffic through another host; set HTTPS_PROXY in the control plane if all need one", "proxy-url")
	}
	u, err := url.Parse(c.ProxyURL)
	if err != nil || u.Hostname() == "" {
		return nil, refuse("", "is not a URL")
	}
	switch u.Scheme {
	case "http", "https", "socks5":
	default:
		return nil, refuse("", "must begin with http://, https:// or socks5://")
	}
	if err := checkLiteral(u.Hostname(), o); err != nil {
		return nil, refuse("", "%v", err)
	}
	return u, nil
}

func decode(field, s string) ([]byte, error) {
	// Line breaks are common in hand-made files; StdEncoding skips them.
	data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
	if err != nil {
		return nil, refuse(field, "is not base64")
	}
	return data, nil
}

func absolute(field, path string) error {
	if !filepath.IsAbs(path) {
		return refuse(field, "must be an absolute path")
	}
	return nil
}

func notPrintable(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }

// printable bounds a name from outside for messages and logs.
func printable(s string) string {
	const limit = 200
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}
