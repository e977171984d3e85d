package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// trust is the CA of the mesh as this process runs it.
type trust struct {
	c         *Control
	authority *ca.Authority
	holders   *ca.Holders
	service   *ca.Service
	// keeper and serving are made when the mesh's settings are known.
	keeper  atomic.Pointer[ca.Keeper]
	serving atomic.Pointer[ca.Serving]
}

func newTrust(c *Control) (*trust, error) {
	s := &c.settings.Security
	t := &trust{c: c, holders: ca.NewHolders(s.Clock)}
	var err error
	t.authority, err = ca.NewAuthority(ca.AuthorityConfig{DefaultLifetime: s.CertTTL, MaxLifetime: s.MaxCertTTL,
		Logger: c.log.Named("ca"), Clock: s.Clock, Registerer: c.metrics})
	if err != nil {
		return nil, err
	}
	if s.CertProvider != "istiod" {
		c.log.Warn("PILOT_CERT_PROVIDER is not supported and counts as istiod: certificates come from the CA of the mesh", zap.String("value", s.CertProvider))
	}
	return t, nil
}

// newService makes the CSR service; the authenticators must be there.
func (t *trust) newService() error {
	accounts, err := ca.ParseNodeAccounts(t.c.settings.Security.NodeAccounts)
	if err != nil {
		return err
	}
	cfg := ca.ServiceConfig{Authority: t.authority, Authenticator: t.c.access.chain, Holders: t.holders,
		Logger: t.c.log.Named("ca"), Registerer: t.c.metrics}
	if t.c.kube != nil {
		cfg.NodeAccounts, cfg.Pods = accounts, podLookup{t.c.clientFor}
	}
	t.service, err = ca.NewService(cfg)
	return err
}

// run keeps the CA supplied and the control plane's own certificate fresh. It
// begins when the mesh's settings are known, which name the trust domain and
// the address that proxies call.
func (t *trust) run(ctx context.Context) error {
	if !t.c.world.awaitSettings(ctx) {
		return nil
	}
	keeper, err := t.newKeeper()
	if err != nil {
		return err
	}
	serving, err := t.newServing()
	if err != nil {
		return err
	}
	t.keeper.Store(keeper)
	t.serving.Store(serving)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return keeper.Run(ctx) })
	g.Go(func() error { return serving.Run(ctx) })
	return g.Wait()
}

func (t *trust) newKeeper() (*ca.Keeper, error) {
	s := &t.c.settings
	cfg := ca.KeeperConfig{Authority: t.authority, Cluster: s.primary(), Namespace: s.Namespace, Replica: s.PodName,
		Share: t.share, Logger: t.c.log.Named("ca"), Clock: s.Security.Clock, Registerer: t.c.metrics}
	self := ca.SelfSignedConfig{Cluster: s.primary(), Namespace: s.Namespace, Organization: t.c.store.Catalog().TrustDomain(),
		Lifetime: s.Security.SelfSignedTTL, GracePercent: s.Security.SelfSignedGrace, Replica: s.PodName,
		UseCACerts: s.Security.UseCACerts, Clock: s.Security.Clock}
	about := mesh.ObjectRef{Cluster: s.primary(), Kind: "Secret", Namespace: s.Namespace, Name: ca.PluggedInSecret}
	for _, dir := range caDirs(s.Security.CADir) {
		files := ca.NewFileSource(dir, about, s.Security.Clock)
		files.LeaveGenerated = s.Security.UseCACerts
		cfg.Sources = append(cfg.Sources, files)
	}
	if k := t.c.kube; k != nil {
		cfg.Client, self.Client = k.client, k.client
		cfg.Events = func(about mesh.ObjectRef, reason, message string) {
			k.recorder.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: about.Kind, Namespace: about.Namespace, Name: about.Name},
				corev1.EventTypeWarning, reason, message)
		}
		plugged := ca.NewSecretSource(k.client, s.primary(), s.Namespace, s.Security.Clock)
		plugged.LeaveGenerated = s.Security.UseCACerts
		cfg.Sources = append(cfg.Sources, plugged)
	}
	last, err := ca.NewSelfSigned(self)
	if err != nil {
		return nil, err
	}
	cfg.Sources = append(cfg.Sources, last)
	return ca.NewKeeper(cfg)
}

// caDirs are the directories that may hold issuing material: the one that is
// set, else those that Istio's chart and Istio's binary know.
func caDirs(set string) []string {
	if set != "" {
		return []string{set}
	}
	dirs := []string{filepath.Clean("./etc/cacerts"), ca.DefaultCADir}
	if abs, err := filepath.Abs(dirs[0]); err == nil && abs == dirs[1] {
		return dirs[1:]
	}
	return dirs
}

// share counts the proxies of this replica that hold a root.
func (t *trust) share(anchor string, since time.Time) ca.Share {
	var keys []string
	for _, c := range t.c.xds.Callers() {
		if caller, ok := c.(authn.Caller); ok {
			keys = append(keys, caller.Key())
		}
	}
	return t.holders.Share(keys, anchor, since)
}

func (t *trust) newServing() (*ca.Serving, error) {
	s := &t.c.settings
	version, err := s.Security.minTLS()
	if err != nil {
		return nil, err
	}
	hosts := s.Security.CustomHosts
	if host := discoveryHost(t.c.store.Catalog().Settings.Mesh.GetDefaultConfig().GetDiscoveryAddress()); host != "" {
		hosts = append(hosts, host)
	}
	return ca.NewServing(ca.ServingConfig{Authority: t.authority, DNSNames: ca.ServingNames(s.Namespace, s.Revision, hosts...),
		Files: s.Security.servingFiles(func(path string) bool { return existing(path) != "" }), MinVersion: version, Logger: t.c.log.Named("ca"), Clock: s.Security.Clock})
}

// discoveryHost is the host of the mesh's discovery address, "" if it has none
// that a certificate could name.
func discoveryHost(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	return host
}

// notReady says why nobody can be served over TLS, "" if they can.
func (t *trust) notReady() string {
	s := t.serving.Load()
	switch {
	case s == nil:
		return "mesh settings not read yet"
	case s.Ready():
		return ""
	}
	for _, problem := range []string{t.keeper.Load().Progress().Problem, s.Problem()} {
		if problem != "" {
			return "no certificate to serve with: " + problem
		}
	}
	return "no certificate to serve with yet"
}

// progress is where the CA stands, nil if it does not run (yet).
func (t *trust) progress() *ca.Progress {
	k := t.keeper.Load()
	if k == nil {
		return nil
	}
	p := k.Progress()
	return &p
}

// ServeHTTP answers /debug/ca.
func (t *trust) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k := t.keeper.Load()
	if k == nil {
		http.Error(w, "the CA does not run (yet)", http.StatusServiceUnavailable)
		return
	}
	k.ServeHTTP(w, r)
}

// rootsPEM is the text of the roots that agents are told to trust before they
// have a certificate: those of the mesh, and those of a serving certificate that
// somebody else issued. nil if they have not been read yet.
func (t *trust) rootsPEM() []byte {
	if s := t.serving.Load(); s != nil {
		return s.Bundle()
	}
	return nil
}

// RootsPEM is the text of the roots that agents are told to trust, for tests and
// embedding; nil if there are none yet.
func (c *Control) RootsPEM() []byte { return c.trust.rootsPEM() }

// newSecurity makes everything of the CA and of access; the world must be there.
func (c *Control) newSecurity() error {
	var err error
	if c.trust, err = newTrust(c); err != nil {
		return fmt.Errorf("prepare CA: %w", err)
	}
	if c.access, err = newAccess(c); err != nil {
		return fmt.Errorf("prepare authentication: %w", err)
	}
	if err := c.trust.newService(); err != nil {
		return fmt.Errorf("prepare CSR service: %w", err)
	}
	c.secrets = newGatewaySecrets(c)
	c.pulls = newPullSecrets(c)
	return nil
}

// errNoServing cannot happen: readiness waits for it.
var errNoServing = errors.New("serve TLS: no serving identity")
