package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

const (
	// fieldPullSecret is what is left out where a proxy does not get it.
	fieldPullSecret = "spec.imagePullSecret"
	// ofCluster follows it where the Secret itself is at fault.
	ofCluster = " in cluster "
	// maxPullSecret is the most that a credential may be, in bytes: it travels in
	// every response that has the plugin.
	maxPullSecret = 64 << 10
)

// pullSecrets hands proxies the credentials that the modules of their WasmPlugins
// are fetched with. A credential is for proxies that have proven to be of the
// plugin's namespace, in a cluster that vouches for them; that is asked before
// anything is looked up. All others get the plugin without it, and why is among
// the problems of the plugin.
//
// The Secret is that of the plugin's namespace in the proxy's own cluster, else
// in the primary. It is read beside the stream: until that is done, for
// [secretWait] at most for each of the two, the proxy is not told of the plugin.
type pullSecrets struct {
	c       *Control
	log     *zap.Logger
	watches *secretWatches

	mu    sync.Mutex
	ctx   context.Context // nil while nothing runs
	known map[pullKey]*pull
	// reading are the goroutines that read.
	reading sync.WaitGroup
}

// pullKey is a Secret as the proxies of a cluster see it.
type pullKey struct {
	cluster         mesh.ClusterID
	namespace, name string
}

// pull is what is known of a credential; guarded by pullSecrets.mu.
type pull struct {
	// read: it was looked for. reading: somebody does so now, and again will
	// another time.
	read, reading, again bool
	found
	// plugins are the extension configurations that wait for it or have it.
	plugins map[string]bool
}

// found is what was found of a credential.
type found struct {
	// config is the credential, in the form of Docker's config.json; why says why
	// there is none. stamp tells one from another.
	config, stamp, why string
	// from is where it was found.
	from secretKey
}

func newPullSecrets(c *Control) *pullSecrets {
	p := &pullSecrets{c: c, log: c.log.Named("pull-secrets"), known: map[pullKey]*pull{}}
	p.watches = newSecretWatches(c.clientFor, p.changed, p.log)
	return p
}

// run looks after the watches, and reads, until the context ends.
func (p *pullSecrets) run(ctx context.Context) error {
	defer p.start(ctx)()
	tick := time.NewTicker(secretLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.look()
		}
	}
}

// start allows reading until stop is called, which waits for it.
func (p *pullSecrets) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	stopWatches := p.watches.start(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ctx = ctx
	for k, x := range p.known { // proxies may have come before
		p.readNow(k, x)
	}
	return func() {
		cancel()
		p.mu.Lock()
		p.ctx = nil
		clear(p.known)
		p.mu.Unlock()
		p.reading.Wait()
		stopWatches()
	}
}

// look reads everything anew that a plugin still names, so that a Secret that is
// gone, a right that was granted and an API server that came back are noticed.
func (p *pullSecrets) look() {
	wanted := map[secretKey]bool{}
	p.mu.Lock()
	for k, x := range p.known {
		for n := range x.plugins {
			if o, secret := build.PullSecretOf(p.c.store.Catalog(), n); o == nil || o.Key.Namespace != k.namespace || secret != k.name {
				delete(x.plugins, n)
			}
		}
		if len(x.plugins) == 0 && !x.reading {
			delete(p.known, k)
			continue
		}
		for _, at := range p.places(k) {
			wanted[at] = true
		}
		p.readNow(k, x)
	}
	p.mu.Unlock()
	p.watches.keep(wanted)
}

func (p *pullSecrets) places(k pullKey) []secretKey {
	return secretName{namespace: k.namespace, name: k.name}.places(k.cluster, p.c.settings.primary())
}

// changed reads a Secret anew for all who have it.
func (p *pullSecrets) changed(s secretKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, x := range p.known {
		if k.namespace == s.namespace && k.name == s.name {
			p.readNow(k, x)
		}
	}
}

// Complete implements [xds.Completer].
func (p *pullSecrets) Complete(_ *mesh.Proxy, who any, extension string, message []byte) (out []byte, stamp string, known bool) {
	plugin, secret := build.PullSecretOf(p.c.store.Catalog(), extension)
	if plugin == nil {
		return message, "", true
	}
	caller, ok := who.(authn.Caller)
	if why := notEntitled(caller, ok, plugin.Key.Namespace); why != "" {
		p.c.leftOut.note(plugin, fieldPullSecret, why)
		return message, "", true
	}
	config, stamp, why, known := p.credential(pullKey{caller.Cluster, plugin.Key.Namespace, secret}, extension)
	switch {
	case !known:
		return nil, "", false
	case why != "":
		p.c.leftOut.note(plugin, fieldPullSecret+ofCluster+string(caller.Cluster), why)
		return message, "", true
	}
	out, err := build.WithPullSecret(message, config)
	if err != nil {
		p.c.leftOut.note(plugin, fieldPullSecret, err.Error())
		return message, "", true
	}
	return out, stamp, true
}

// notEntitled says why a caller may not have the credentials of a namespace, ""
// if it may.
func notEntitled(caller authn.Caller, proven bool, namespace string) string {
	const without = "is not handed to all proxies that have the plugin; they fetch the module without it: "
	switch {
	case !proven:
		return without + "some are connected without proof of who they are; connect them over TLS with a token"
	case caller.Identity.Namespace != namespace:
		return without + "some are of namespace " + caller.Identity.Namespace + "; have a plugin and a Secret there"
	case caller.Cluster == "":
		return without + "some prove who they are by a certificate, which names no cluster; connect them with a token"
	}
	return ""
}

// credential returns what is known of a credential, and sees to it that it will be.
func (p *pullSecrets) credential(k pullKey, extension string) (config, stamp, why string, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil && p.c.kube == nil {
		return "", "", "is not handed to proxies: without Kubernetes there are no Secrets to read", true
	}
	x := p.known[k]
	if x == nil {
		x = &pull{plugins: map[string]bool{}}
		p.known[k] = x
	}
	x.plugins[extension] = true
	if !x.read {
		if !x.reading {
			p.readNow(k, x)
		}
		return "", "", "", false
	}
	return x.config, x.stamp, x.why, true
}

// readNow reads a credential beside whoever asks for it. mu is held.
func (p *pullSecrets) readNow(k pullKey, x *pull) {
	if p.ctx == nil {
		return
	}
	if x.reading {
		x.again = true
		return
	}
	x.reading = true
	ctx := p.ctx
	p.reading.Go(func() {
		for again := true; again; {
			again = p.readOnce(ctx, k, x)
		}
	})
}

// readOnce reads a credential and tells the proxies that may have it if it is
// another. It reports whether it has changed again meanwhile.
func (p *pullSecrets) readOnce(ctx context.Context, k pullKey, x *pull) (again bool) {
	f := p.find(ctx, k)
	p.mu.Lock()
	news := false
	if x.config == "" || !slices.Contains(f.unread, x.from) { // what cannot be read now is as it was
		if f.why != "" {
			f.why = "is not handed to proxies, which fetch the module without it: " + f.why
		}
		news = !x.read || x.config != f.config || x.why != f.why
		x.read, x.found = true, f.found
	}
	plugins := slices.Sorted(maps.Keys(x.plugins))
	again, x.again = x.again, false
	x.reading = again
	p.mu.Unlock()
	if !news || ctx.Err() != nil {
		return again
	}
	for _, n := range plugins {
		if o, _ := build.PullSecretOf(p.c.store.Catalog(), n); o != nil {
			p.c.leftOut.settle(o, fieldPullSecret+ofCluster+string(k.cluster)) // what is so now is said with the resource
		}
		p.c.xds.Completed(build.TypeExtension, n, func(_ *mesh.Proxy, who any) bool {
			caller, ok := who.(authn.Caller)
			return notEntitled(caller, ok, k.namespace) == "" && caller.Cluster == k.cluster
		})
	}
	return again
}

// finding is what was found, and which Secrets could not be read.
type finding struct {
	found
	unread []secretKey
}

// find reads the first Secret that there is. A cluster whose Secrets cannot be
// read, as those of remotes unless they are told otherwise, does not stand in the
// way of the primary's.
func (p *pullSecrets) find(ctx context.Context, k pullKey) finding {
	var out finding
	var failed error
	for _, at := range p.places(k) {
		s, err := p.secret(ctx, at)
		if err != nil {
			out.unread, failed = append(out.unread, at), errors.Join(failed, err)
			continue
		}
		if s == nil {
			continue
		}
		if out.config, err = dockerConfig(s); err != nil {
			out.why = fmt.Sprintf("secret %s: %v", at, err)
			return out
		}
		out.stamp, out.from = string(s.UID)+"/"+s.ResourceVersion, at
		return out
	}
	if out.why = fmt.Sprintf("there is no Secret %s/%s in the proxy's cluster or the primary", k.namespace, k.name); failed != nil {
		out.why = failed.Error()
	}
	return out
}

func (p *pullSecrets) secret(ctx context.Context, at secretKey) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, secretWait)
	defer cancel()
	return p.watches.secret(ctx, at)
}

// dockerConfig reads a credential. Errors never quote it.
func dockerConfig(s *corev1.Secret) (string, error) {
	if s.Type != corev1.SecretTypeDockerConfigJson {
		return "", fmt.Errorf("is of type %q; want %s", s.Type, corev1.SecretTypeDockerConfigJson)
	}
	config := s.Data[corev1.DockerConfigJsonKey]
	switch {
	case len(config) == 0:
		return "", errors.New("has no " + corev1.DockerConfigJsonKey)
	case len(config) > maxPullSecret:
		return "", fmt.Errorf("%s has %d bytes, more than %d", corev1.DockerConfigJsonKey, len(config), maxPullSecret)
	case !json.Valid(config):
		return "", errors.New(corev1.DockerConfigJsonKey + " is not JSON")
	}
	return string(config), nil
}

var _ xds.Completer = (*pullSecrets)(nil)
