package mtls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

const trustDomain = "cluster.local"

func workload(account string) mesh.Identity {
	return mesh.Identity{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: account}
}

// clock is the machine's clock, moved forward by a test: what the CA waits for
// need not be waited for.
type clock struct{ ahead atomic.Int64 }

func (c *clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *clock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }

// mount is a directory of issuing material, laid out and replaced in one step
// as a kubelet does with a Secret.
type mount struct {
	t       testing.TB
	dir     string
	version int
}

// newRoot makes a root and an intermediate under it, both valid since a day,
// and returns the intermediate's directory.
func newRoot(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	made := func() time.Time { return time.Now().Add(-24 * time.Hour) }
	_, err := ca.MakeRoot(ca.RootOptions{Dir: filepath.Join(dir, "root"), CommonName: name, Clock: made})
	require.NoError(t, err)
	issuer := filepath.Join(dir, "issuer")
	_, err = ca.MakeIntermediate(ca.IntermediateOptions{RootDir: filepath.Join(dir, "root"), Dir: issuer, Cluster: name, Clock: made})
	require.NoError(t, err)
	return issuer
}

func newMount(t testing.TB, issuer string) *mount {
	t.Helper()
	m := &mount{t: t, dir: t.TempDir()}
	m.put(issuer)
	return m
}

// put replaces the content by that of an issuer's directory.
func (m *mount) put(issuer string) {
	m.t.Helper()
	m.version++
	version := fmt.Sprintf("..v%d", m.version)
	require.NoError(m.t, os.CopyFS(filepath.Join(m.dir, version), os.DirFS(issuer)))
	swapLink(m.t, version, filepath.Join(m.dir, "..data"))
	if m.version > 1 {
		return
	}
	for _, name := range []string{"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"} {
		require.NoError(m.t, os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)))
	}
}

// swapLink makes link point to target in one step.
func swapLink(t testing.TB, target, link string) {
	t.Helper()
	require.NoError(t, os.Symlink(target, link+".new"))
	require.NoError(t, os.Rename(link+".new", link))
}

// Times of an authority whose root is rotated within a test. The CA's clock is
// moved forward by minDistribution and by maxLifetime together; certificates
// are dated back two minutes, so that what it issues then is valid here and now.
const (
	minDistribution = 10 * time.Second
	maxLifetime     = 90 * time.Second
	margin          = time.Second
)

// trust is the CA of a mesh: authority, keeper, and the CSR service on TLS.
type trust struct {
	t         testing.TB
	clock     *clock
	mount     *mount
	authority *ca.Authority
	keeper    *ca.Keeper
	addr      string
}

// newAuthority returns an authority that is fed from a directory.
func newAuthority(t testing.TB, dir string, now func() time.Time, holders *ca.Holders, change ...func(*ca.RotationSettings)) (*ca.Authority, *ca.Keeper) {
	t.Helper()
	a, err := ca.NewAuthority(ca.AuthorityConfig{DefaultLifetime: maxLifetime, MaxLifetime: maxLifetime, Clock: now})
	require.NoError(t, err)
	cfg := ca.KeeperConfig{
		Authority: a,
		Sources:   []ca.Source{ca.NewFileSource(dir, mesh.ObjectRef{}, now)},
		Replica:   "isthmus-0",
		Rotation:  ca.RotationSettings{MinDistribution: minDistribution, Margin: margin},
		Settle:    5 * time.Millisecond,
		Warmup:    time.Nanosecond,
		Clock:     now,
	}
	for _, f := range change {
		f(&cfg.Rotation)
	}
	if holders != nil {
		cfg.Share = func(anchor string, since time.Time) ca.Share {
			// The keeper allows for two minutes between the clocks of replicas; there
			// is one replica and one clock here.
			return holders.Share(nil, anchor, since.Add(-2*time.Minute))
		}
	}
	k, err := ca.NewKeeper(cfg)
	require.NoError(t, err)
	run(t, k.Run)
	require.Eventually(t, a.Ready, patience, time.Millisecond)
	return a, k
}

// run runs a part until the test ends.
func run(t testing.TB, part func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
}

// newTrust starts the CA with a new root; its rotation may be changed.
func newTrust(t testing.TB, change ...func(*ca.RotationSettings)) *trust {
	t.Helper()
	c := &clock{}
	tr := &trust{t: t, clock: c, mount: newMount(t, newRoot(t, "first"))}
	holders := ca.NewHolders(c.Now)
	tr.authority, tr.keeper = newAuthority(t, tr.mount.dir, c.Now, holders, change...)
	serving, err := ca.NewServing(ca.ServingConfig{Authority: tr.authority, DNSNames: ca.ServingNames("istio-system", ""), Clock: c.Now})
	require.NoError(t, err)
	run(t, serving.Run)
	require.Eventually(t, serving.Ready, patience, time.Millisecond)
	service, err := ca.NewService(ca.ServiceConfig{Authority: tr.authority, Authenticator: authn.Chain{pods{}}, Holders: holders, Clock: c.Now})
	require.NoError(t, err)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(serving.TLSConfig())))
	service.Register(srv)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	tr.addr = l.Addr().String()
	serve(t, srv, l)
	return tr
}

// serve serves on a listener until the test ends.
func serve(t testing.TB, srv interface {
	Serve(net.Listener) error
	Stop()
}, l net.Listener) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	stop = sync.OnceFunc(func() { srv.Stop(); <-done })
	t.Cleanup(stop)
	return stop
}

// pods stands for the API servers that review tokens: a token is CLUSTER/ACCOUNT.
type pods struct{}

// Authenticate implements [authn.Authenticator].
func (pods) Authenticate(_ context.Context, r authn.Request) (authn.Caller, error) {
	cluster, account, ok := strings.Cut(r.Token, "/")
	if !ok || cluster != string(r.Cluster) {
		return authn.Caller{}, fmt.Errorf("review token: %w", authn.ErrUnauthenticated)
	}
	return authn.Caller{Identity: workload(account), Cluster: r.Cluster, Expiry: time.Now().Add(time.Hour),
		Source: authn.SourceToken, PodUID: r.Token}, nil
}

// material is what a workload holds, in PEM.
type material struct{ chain, key, roots []byte }

// newRequest makes a key and a certificate request for it.
func newRequest(t testing.TB) (csr, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// answered takes the CSR service's list apart: the roots are the last element.
func answered(chain []string, key []byte) material {
	last := len(chain) - 1
	return material{chain: []byte(strings.Join(chain[:last], "")), key: key, roots: []byte(chain[last])}
}

// issue asks the CSR service for a certificate, as a pod of the cluster does.
func (tr *trust) issue(cluster, account string) material {
	tr.t.Helper()
	roots := x509.NewCertPool()
	require.True(tr.t, roots.AppendCertsFromPEM(tr.authority.RootsPEM()))
	conn, err := grpc.NewClient(tr.addr, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "istiod.istio-system.svc")))
	require.NoError(tr.t, err)
	defer func() { require.NoError(tr.t, conn.Close()) }()
	ctx, cancel := context.WithTimeout(tr.t.Context(), patience)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+cluster+"/"+account, "clusterid", cluster)
	csr, key := newRequest(tr.t)
	// Agents try again, too: the service's own certificate follows a new issuer a
	// moment later.
	resp, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx,
		&securityapi.IstioCertificateRequest{Csr: string(csr)}, grpc.WaitForReady(true))
	require.NoError(tr.t, err)
	return answered(resp.GetCertChain(), key)
}

// sign issues without the service, for certificates that it would not give out.
func sign(t testing.TB, a *ca.Authority, id mesh.Identity) material {
	t.Helper()
	csr, key := newRequest(t)
	cert, err := a.Sign(ca.SignRequest{CSR: csr, Identity: id})
	require.NoError(t, err)
	return answered(cert.Chain, key)
}

// waitFor waits until a condition of the keeper's progress holds.
func (tr *trust) waitFor(what string, ok func(ca.Progress) bool) {
	tr.t.Helper()
	require.Eventually(tr.t, func() bool { return ok(tr.keeper.Progress()) }, patience, 2*time.Millisecond, what)
}
