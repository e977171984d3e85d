package serve

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// An external control plane runs in one cluster and takes its configuration from
// another, the primary: Secret istio-kubeconfig, mounted as a file, leads there.
// Everything is read and written in the primary, but for the remote secrets
// where LOCAL_CLUSTER_SECRET_WATCHER says so.

// secretsClient reads remote secrets in the cluster that the control plane runs
// in; nil if they are in the primary.
func (k *kubeWorld) secretsClient() (kubernetes.Interface, error) {
	if !k.c.settings.External || !k.c.settings.LocalSecrets {
		return nil, nil
	}
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("find credentials of the cluster that the control plane runs in: %w; LOCAL_CLUSTER_SECRET_WATCHER looks for remote secrets there, so run in a pod or unset it", err)
	}
	k.tune(cfg)
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of the cluster that the control plane runs in: %w", err)
	}
	return client, nil
}

// tokenLook is how often a kubeconfig is looked at for a renewed token.
const tokenLook = 10 * time.Second

// fileConfig reads a kubeconfig. A token in it is read again when the file
// changes, as that of a mounted Secret does; other changes need a restart.
func fileConfig(file string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", file, err)
	}
	if cfg.BearerToken == "" || cfg.BearerTokenFile != "" {
		return cfg, nil
	}
	tokens := &fileTokens{file: file, token: cfg.BearerToken, now: time.Now}
	cfg.BearerToken = ""
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return withToken{next, tokens} })
	return cfg, nil
}

// fileTokens is the token in a kubeconfig, as it is now.
type fileTokens struct {
	file string
	now  func() time.Time

	mu     sync.Mutex
	token  string
	looked time.Time // when the file was last looked at
	read   time.Time // modification time of what was read
}

// get returns the token. A file that cannot be read, as in the moment of its
// replacement, leaves the last one.
func (f *fileTokens) get() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now().Sub(f.looked) < tokenLook {
		return f.token
	}
	f.looked = f.now()
	info, err := os.Stat(f.file)
	if err != nil || info.ModTime().Equal(f.read) {
		return f.token
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", f.file)
	if err != nil || cfg.BearerToken == "" {
		return f.token
	}
	f.token, f.read = cfg.BearerToken, info.ModTime()
	return f.token
}

// withToken adds the token to requests.
type withToken struct {
	next   http.RoundTripper
	tokens *fileTokens
}

// RoundTrip implements [http.RoundTripper].
func (w withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Authorization") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+w.tokens.get())
	}
	return w.next.RoundTrip(r)
}

// WrappedRoundTripper lets client-go find the transport below.
func (w withToken) WrappedRoundTripper() http.RoundTripper { return w.next }
