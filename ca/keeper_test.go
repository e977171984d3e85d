package ca

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/ca/internal/apifake"
	"github.com/isthmus-mesh/isthmus/mesh"
)

const systemNS = "istio-system"

// replica is one replica's authority and keeper, driven by hand.
type replica struct {
	name   string
	auth   *Authority
	keeper *Keeper
	share  Share
	events []string
}

func newReplica(t testing.TB, name string, c *clock, client kubernetes.Interface, sources ...Source) *replica {
	t.Helper()
	r := &replica{name: name, auth: newAuthority(t, c, nil)}
	if len(sources) == 0 {
		self, err := NewSelfSigned(SelfSignedConfig{Client: client, Cluster: "c1", Namespace: systemNS, Replica: name, Clock: c.Now})
		require.NoError(t, err)
		sources = []Source{NewSecretSource(client, "c1", systemNS, c.Now), self}
	}
	var err error
	r.keeper, err = NewKeeper(KeeperConfig{
		Authority: r.auth, Sources: sources, Client: client, Cluster: "c1", Namespace: systemNS, Replica: name, Clock: c.Now,
		Share: func(string, time.Time) Share { return r.share },
		Events: func(o mesh.ObjectRef, reason, msg string) {
			r.events = append(r.events, o.String()+" "+reason+": "+msg)
		},
		Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	return r
}

func (r *replica) look(t testing.TB) { r.keeper.reconcile(t.Context()) }

func (r *replica) anchors(t testing.TB) []string {
	t.Helper()
	var out []string
	for _, c := range parsePEM(t, string(r.auth.RootsPEM())) {
		out = append(out, anchorOf(c))
	}
	return out
}

func putCACerts(t testing.TB, client kubernetes.Interface, b *Bundle) {
	t.Helper()
	putSecret(t, client, PluggedInSecret, filesOf(t, b))
}

func putSecret(t testing.TB, client kubernetes.Interface, name string, data map[string][]byte) {
	t.Helper()
	secrets := client.CoreV1().Secrets(systemNS)
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: systemNS}, Data: data}
	if _, err := secrets.Create(t.Context(), s, metav1.CreateOptions{}); err == nil {
		return
	}
	_, err := secrets.Update(t.Context(), s, metav1.UpdateOptions{})
	require.NoError(t, err)
}

// Replicas that start at once agree on one self-signed root, in istiod's form.
func TestSelfSignedUnderContention(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	var wg sync.WaitGroup
	replicas := make([]*replica, 8)
	for i := range replicas {
		replicas[i] = newReplica(t, string(rune('a'+i)), c, api.Client(t))
		wg.Go(func() { replicas[i].look(t) })
	}
	wg.Wait()
	for _, r := range replicas {
		r.look(t)
		require.True(t, r.auth.Ready(), r.keeper.Progress().Error)
		require.Equal(t, string(replicas[0].auth.RootsPEM()), string(r.auth.RootsPEM()))
	}
	secret, err := api.Client(t).CoreV1().Secrets(systemNS).Get(t.Context(), SelfSignedSecret, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, corev1.SecretType("istio.io/ca-root"), secret.Type)
	for _, key := range []string{"ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem", "key.pem"} {
		require.Contains(t, secret.Data, key)
	}
	require.Equal(t, secret.Data["ca-cert.pem"], secret.Data["root-cert.pem"])
	require.Empty(t, secret.Data["cert-chain.pem"])
	require.Contains(t, string(secret.Data["ca-key.pem"]), "BEGIN EC PRIVATE KEY")
	cert, _ := sign(t, replicas[0].auth, workload("a", "b"), 0)
	verifies(t, append(cert.Chain[:1:1], string(secret.Data["root-cert.pem"])), c.Now())
}

func TestSelfSignedTakesOverFromIstiod(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	client := api.Client(t)
	files := filesOf(t, newRoot(t, "istiod", c.Now(), 3650*24*time.Hour))
	delete(files, fileRootCert) // as older istiods write it
	putSecret(t, client, SelfSignedSecret, files)
	r := newReplica(t, "a", c, client)
	r.look(t)
	require.Contains(t, parsePEM(t, string(r.auth.RootsPEM()))[0].Subject.String(), "istiod")
}

// A Secret that is there but bad may be somebody's CA: it is not replaced.
func TestSelfSignedNeverReplacesABadSecret(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	putSecret(t, api.Client(t), SelfSignedSecret, map[string][]byte{fileCACert: []byte("half")})
	r := newReplica(t, "a", c, api.Client(t))
	r.look(t)
	require.False(t, r.auth.Ready())
	require.Len(t, r.events, 1)
	require.Contains(t, r.events[0], "Secret istio-system/istio-ca-secret in cluster c1 BadCABundle")
	require.Zero(t, api.Calls(http.MethodPut, SelfSignedSecret))
}

// An API server that does not answer is no reason to make a root of our own.
func TestUnknownSourceIsNotAbsent(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	api.Before(func(w http.ResponseWriter, r *http.Request) bool {
		if filepath.Base(r.URL.Path) != PluggedInSecret {
			return false
		}
		apifake.Fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, "no")
		return true
	})
	r := newReplica(t, "a", c, api.Client(t))
	r.look(t)
	require.False(t, r.auth.Ready())
	require.Zero(t, api.Calls(http.MethodPost, "secrets"))
	require.Contains(t, r.keeper.Progress().Problem, "cacerts")
}

// Row 29: a half-written or wrong update keeps the old CA and says so once.
func TestRow29HalfWrittenFiles(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	root := newRoot(t, "root", c.Now(), 3650*24*time.Hour)
	write := func(files map[string][]byte) {
		for name, text := range files {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
		}
	}
	good := newIntermediate(t, root, "one", c.Now(), 1000*time.Hour)
	write(filesOf(t, good))
	object := mesh.ObjectRef{Cluster: "c1", Kind: "Secret", Namespace: systemNS, Name: PluggedInSecret}
	r := newReplica(t, "a", c, nil, NewFileSource(dir, object, c.Now))
	r.look(t)
	signer := func() string { return r.keeper.Progress().Current.ID }
	require.Equal(t, good.ID(), signer())

	next := newIntermediate(t, root, "two", c.Now(), 1000*time.Hour)
	write(map[string][]byte{fileCAKey: filesOf(t, next)[fileCAKey]}) // the certificate is yet to come
	r.look(t)
	r.look(t)
	require.Equal(t, good.ID(), signer())
	require.Len(t, r.events, 1)
	require.Contains(t, r.events[0], "ca-key.pem: does not match")
	require.NotEmpty(t, r.keeper.Progress().Problem)
	_, err := r.auth.Sign(SignRequest{CSR: agentCSR(t, ecKey(t), "x:y"), Identity: workload("a", "b")})
	require.NoError(t, err)

	write(filesOf(t, next))
	r.look(t)
	require.Equal(t, next.ID(), signer(), "the same root: no rotation needed")
	require.Empty(t, r.keeper.Progress().Problem)

	for _, name := range bundleFileNames() {
		_ = os.Remove(filepath.Join(dir, name))
	}
	r.look(t)
	require.Equal(t, next.ID(), signer(), "files that are gone are no reason to stop")
	require.Contains(t, r.events[1], "has gone")
}

// A new root is plugged in: all replicas go through both phases together.
func TestPluggedInRootRotation(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	client := api.Client(t)
	old, next := newRoot(t, "old", c.Now(), 3650*24*time.Hour), newRoot(t, "next", c.Now(), 3650*24*time.Hour)
	a1, a2 := anchorOf(old.Cert), anchorOf(next.Cert)
	putCACerts(t, client, old)
	x, y := newReplica(t, "x", c, api.Client(t)), newReplica(t, "y", c, api.Client(t))
	all := func() { x.look(t); y.look(t); x.look(t); y.look(t) }
	all()
	require.Equal(t, []string{a1}, x.anchors(t))

	putCACerts(t, client, next)
	all()
	for _, r := range []*replica{x, y} {
		p := r.keeper.Progress()
		require.Equal(t, PhaseDistributing, p.Phase, p.Error)
		require.Equal(t, []string{a1, a2}, r.anchors(t))
		require.Equal(t, old.ID(), p.Current.ID)
	}
	// A replica that starts now finds the old key only in the record.
	z := newReplica(t, "z", c, api.Client(t))
	z.look(t)
	require.Equal(t, old.ID(), z.keeper.Progress().Current.ID)
	require.Equal(t, []string{a1, a2}, z.anchors(t))
	cert, _ := sign(t, z.auth, workload("a", "b"), 0)
	require.Equal(t, old.ID(), cert.issuer.ID())

	// Three replicas; one still has proxies without the new root.
	three := func() { all(); z.look(t); all(); z.look(t) }
	x.share, y.share, z.share = Share{3, 3, true}, Share{1, 2, true}, Share{0, 0, true}
	three()
	c.Add(9 * time.Minute)
	three()
	c.Add(2 * time.Minute)
	three()
	require.Equal(t, Share{4, 5, true}, x.keeper.Progress().Share)
	require.Equal(t, PhaseDistributing, x.keeper.Progress().Phase)
	y.share = Share{2, 2, true}
	three()
	for _, r := range []*replica{x, y, z} {
		p := r.keeper.Progress()
		require.Equal(t, PhaseRetiring, p.Phase)
		require.Equal(t, next.ID(), p.Current.ID)
		require.Equal(t, []string{a2, a1}, r.anchors(t))
		require.NotNil(t, p.Retiring[0].Until)
	}
	secret, err := client.CoreV1().Secrets(systemNS).Get(t.Context(), RotationSecret, metav1.GetOptions{})
	require.NoError(t, err)
	require.NotContains(t, secret.Data, "current.ca-key.pem", "the source holds the key again")

	c.Add(91 * 24 * time.Hour)
	three()
	require.Equal(t, PhaseIdle, x.keeper.Progress().Phase)
	require.Equal(t, []string{a2}, z.anchors(t))
}

// The self-signed root is renewed with a new key through the same two phases,
// and istiod's Secret holds the issuer that signs at every moment.
func TestSelfSignedRotation(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	client := api.Client(t)
	x, y := newReplica(t, "x", c, client), newReplica(t, "y", c, api.Client(t))
	both := func() { x.look(t); y.look(t); x.look(t); y.look(t) }
	both()
	stored := func() string {
		secret, err := client.CoreV1().Secrets(systemNS).Get(t.Context(), SelfSignedSecret, metav1.GetOptions{})
		require.NoError(t, err)
		return fingerprint(parsePEM(t, string(secret.Data[fileCACert]))[0])
	}
	first := x.keeper.Progress().Current.ID
	c.Add(7 * 365 * 24 * time.Hour)
	both()
	require.Equal(t, PhaseIdle, x.keeper.Progress().Phase, "three of ten years are left")
	c.Add(365*24*time.Hour + 24*time.Hour*40)
	both()
	p := x.keeper.Progress()
	require.Equal(t, PhaseDistributing, p.Phase, p.Error)
	require.Equal(t, p.Next.ID, y.keeper.Progress().Next.ID)
	require.Equal(t, first, p.Current.ID)
	require.Equal(t, first, stored())
	both()
	require.False(t, x.keeper.Progress().SwitchBy.IsZero(), "both hand out both roots")

	x.share, y.share = Share{1, 1, true}, Share{1, 1, true}
	both()
	c.Add(10 * time.Minute)
	both()
	both()
	p = y.keeper.Progress()
	require.Equal(t, PhaseRetiring, p.Phase, p.Error)
	require.NotEqual(t, first, p.Current.ID)
	require.Equal(t, p.Current.ID, stored())

	// A replica started from what is stored continues.
	z := newReplica(t, "z", c, api.Client(t))
	z.look(t)
	require.Equal(t, p.Current.ID, z.keeper.Progress().Current.ID)
	require.Len(t, z.anchors(t), 2)
}

// All replicas were down while the operator swapped the root: the old key is
// gone, its root stays trusted.
func TestRootSwappedWhileNobodyRan(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	client := api.Client(t)
	old, next := newRoot(t, "old", c.Now(), 3650*24*time.Hour), newRoot(t, "next", c.Now(), 3650*24*time.Hour)
	putCACerts(t, client, old)
	newReplica(t, "x", c, client).look(t)
	putCACerts(t, client, next)
	y := newReplica(t, "y", c, client)
	y.look(t)
	require.False(t, y.auth.Ready(), "another replica may still have the key")
	c.Add(orphanGrace)
	y.look(t)
	require.Equal(t, next.ID(), y.keeper.Progress().Current.ID)
	require.Equal(t, []string{anchorOf(next.Cert), anchorOf(old.Cert)}, y.anchors(t))
}

func TestRecordThatCannotBeReadKeepsEverything(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	client := api.Client(t)
	r := newReplica(t, "x", c, client)
	r.look(t)
	before := string(r.auth.RootsPEM())
	putSecret(t, client, RotationSecret, map[string][]byte{keyState: []byte("{")})
	r.look(t)
	require.Equal(t, before, string(r.auth.RootsPEM()))
	require.Contains(t, r.keeper.Progress().Error, "isthmus-ca-rotation")
	require.True(t, r.auth.Ready())
	// Deleting it, as the error says, makes it anew.
	require.NoError(t, client.CoreV1().Secrets(systemNS).Delete(t.Context(), RotationSecret, metav1.DeleteOptions{}))
	r.look(t)
	require.Empty(t, r.keeper.Progress().Error)
	require.Equal(t, before, string(r.auth.RootsPEM()))
}

// Row 28: the alarm comes beforehand, and not at every look.
func TestRow28AlarmBeforeExpiry(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	client := api.Client(t)
	putCACerts(t, client, newRoot(t, "r", c.Now(), 99*24*time.Hour))
	r := newReplica(t, "x", c, client)
	alarms := func() int {
		r.look(t)
		return len(slices.DeleteFunc(slices.Clone(r.events), func(e string) bool { return !strings.Contains(e, "CAExpires") }))
	}
	require.Zero(t, alarms())
	c.Add(90 * 24 * time.Hour)
	require.Equal(t, 1, alarms())
	require.Equal(t, 1, alarms())
	c.Add(24 * time.Hour)
	require.Equal(t, 2, alarms())
}

// Run notices what happens to its sources and ends without leaving anything.
func TestKeeperRun(t *testing.T) {
	api := apifake.New(t)
	client := api.Client(t)
	c := newClock()
	r := newReplica(t, "x", c, client)
	r.keeper.cfg.Settle = time.Millisecond
	changed := make(chan struct{}, 16)
	defer r.auth.OnChange(func() { changed <- struct{}{} })()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.keeper.Run(ctx) }()
	<-changed // the self-signed root
	root := newRoot(t, "plugged in", c.Now(), 3650*24*time.Hour)
	putCACerts(t, client, root)
	<-changed // both roots, without any tick
	require.Contains(t, r.anchors(t), anchorOf(root.Cert))
	cancel()
	require.NoError(t, <-done)
}

func TestFileSourceNoticesChanges(t *testing.T) {
	dir := t.TempDir()
	s := NewFileSource(dir, mesh.ObjectRef{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	changed, done := make(chan struct{}, 64), make(chan error)
	go func() { done <- s.Watch(ctx, func() { changed <- struct{}{} }) }()
	// The watch may start after the first write: write until it is seen.
	for seen := false; !seen; {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fileCACert), []byte("x"), 0o600))
		select {
		case <-changed:
			seen = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	require.NoError(t, <-done)
	_, err := s.Load(t.Context())
	var bad *BundleError
	require.ErrorAs(t, err, &bad)
}

// What the progress says the authority has already done: it never runs ahead.
func TestProgressFollowsTheAuthority(t *testing.T) {
	c := newClock()
	good, next := newRoot(t, "good", c.Now(), 3650*24*time.Hour), newRoot(t, "next", c.Now(), 3650*24*time.Hour)
	broken := *next
	broken.key = lyingKey{next.key}
	source := &fixedSource{bundle: good}
	r := newReplica(t, "x", c, nil, source)
	r.keeper.cfg.Rotation.Immediate = true
	var seen []string // what the progress says at the moment at which the authority changes
	defer r.auth.OnChange(func() { seen = append(seen, r.keeper.Progress().Current.ID) })()
	r.look(t)
	require.Equal(t, good.ID(), r.keeper.Progress().Current.ID)

	source.bundle = &broken
	r.look(t)
	p := r.keeper.Progress()
	require.Equal(t, good.ID(), p.Current.ID, "that key does not sign")
	require.Contains(t, p.Error, "try issuing key")

	source.bundle = next
	r.keeper.material[next.ID()] = next
	r.look(t)
	p = r.keeper.Progress()
	require.Equal(t, next.ID(), p.Current.ID, p.Error)
	require.Empty(t, p.Error)
	require.Equal(t, []string{"", good.ID()}, seen)
}

// fixedSource holds what a test puts there.
type fixedSource struct{ bundle *Bundle }

func (*fixedSource) Name() string                            { return "a fixed source" }
func (s *fixedSource) Load(context.Context) (*Bundle, error) { return s.bundle, nil }
func (*fixedSource) Watch(context.Context, func()) error     { return nil }
func (*fixedSource) Object() mesh.ObjectRef                  { return mesh.ObjectRef{} }

func TestDebugCA(t *testing.T) {
	c := newClock()
	self, err := NewSelfSigned(SelfSignedConfig{Clock: c.Now})
	require.NoError(t, err)
	r := newReplica(t, "x", c, nil, self)
	r.look(t)
	w := httptest.NewRecorder()
	r.keeper.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/debug/ca", nil))
	var got map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
	require.Equal(t, "idle", got["phase"])
	require.Equal(t, true, got["ready"])
	require.Equal(t, "self-signed CA in memory", got["source"])
	require.Len(t, got["roots"], 1)
	require.NotContains(t, w.Body.String(), "PRIVATE")
}

// In memory, without Kubernetes, a root is renewed as well, on the clock alone.
func TestMemoryRotationBySynctest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth, err := NewAuthority(AuthorityConfig{})
		require.NoError(t, err)
		self, err := NewSelfSigned(SelfSignedConfig{Lifetime: 30 * 24 * time.Hour})
		require.NoError(t, err)
		k, err := NewKeeper(KeeperConfig{Authority: auth, Sources: []Source{self}, Interval: 10 * time.Minute})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = k.Run(ctx) }()
		synctest.Wait()
		require.True(t, auth.Ready())
		first := k.Progress().Current.ID
		time.Sleep(20 * 24 * time.Hour)
		require.Equal(t, PhaseIdle, k.Progress().Phase)
		time.Sleep(5 * 24 * time.Hour)
		require.Equal(t, PhaseDistributing, k.Progress().Phase)
		time.Sleep(5 * 24 * time.Hour)
		require.NotEqual(t, first, k.Progress().Current.ID, "switched before the old one ended")
		cancel()
		synctest.Wait()
	})
}
