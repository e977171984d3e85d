package ca

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/ca/internal/apifake"
)

// cacertsReplica keeps a self-signed CA in cacerts, with a mounted directory as
// the first source.
func cacertsReplica(t testing.TB, name string, c *clock, client kubernetes.Interface, dir string) *replica {
	t.Helper()
	self, err := NewSelfSigned(SelfSignedConfig{Client: client, Cluster: "c1", Namespace: systemNS, Replica: name, UseCACerts: true, Clock: c.Now})
	require.NoError(t, err)
	files := NewFileSource(dir, self.Object(), c.Now)
	plugged := NewSecretSource(client, "c1", systemNS, c.Now)
	files.LeaveGenerated, plugged.LeaveGenerated = true, true
	r := newReplica(t, name, c, client, files, plugged, self)
	r.share = Share{Held: 1, Total: 1, Known: true}
	return r
}

func getSecret(t testing.TB, client kubernetes.Interface, name string) *corev1.Secret {
	t.Helper()
	s, err := client.CoreV1().Secrets(systemNS).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return s
}

// The root is made in cacerts, marked as generated, by one of several replicas;
// mounted as files it is still the self-signed one, and is renewed in place with
// its mark.
func TestSelfSignedInCACerts(t *testing.T) {
	c, api := newClock(), apifake.New(t)
	client, dir := api.Client(t), t.TempDir()
	x, y := cacertsReplica(t, "x", c, client, dir), cacertsReplica(t, "y", c, api.Client(t), dir)
	both := func() { x.look(t); y.look(t); x.look(t); y.look(t) }
	both()
	secret := getSecret(t, client, PluggedInSecret)
	require.Contains(t, secret.Data, fileGenerated)
	require.Empty(t, secret.Data[fileGenerated])
	require.Equal(t, selfSignedSecretType, secret.Type)
	first := x.keeper.Progress()
	require.Equal(t, "Secret istio-system/cacerts", first.Source)
	require.Empty(t, first.Problem)
	require.Equal(t, first.Current.ID, y.keeper.Progress().Current.ID)
	_, err := client.CoreV1().Secrets(systemNS).Get(t.Context(), SelfSignedSecret, metav1.GetOptions{})
	require.Error(t, err, "and not in the other Secret")

	for name, text := range secret.Data { // as the kubelet mounts it
		putFile(t, dir+"/"+name, text)
	}
	c.Add(8*365*24*time.Hour + 24*time.Hour*50)
	both()
	require.Equal(t, PhaseDistributing, x.keeper.Progress().Phase, x.keeper.Progress().Problem)
	both()
	c.Add(11 * time.Minute)
	both()
	both()
	p := x.keeper.Progress()
	require.NotEqual(t, first.Current.ID, p.Current.ID)
	secret = getSecret(t, client, PluggedInSecret)
	require.Equal(t, p.Current.ID, fingerprint(parsePEM(t, string(secret.Data[fileCACert]))[0]))
	require.Contains(t, secret.Data, fileGenerated)
}

// A CA in istio-ca-secret stays where it is, and an operator's in cacerts is
// never taken for one of ours.
func TestSelfSignedInCACertsLeavesWhatThereIs(t *testing.T) {
	t.Run("istio-ca-secret", func(t *testing.T) {
		c, api := newClock(), apifake.New(t)
		client := api.Client(t)
		before := newReplica(t, "before", c, client)
		before.look(t)
		r := cacertsReplica(t, "x", c, client, t.TempDir())
		r.look(t)
		require.Equal(t, before.keeper.Progress().Current.ID, r.keeper.Progress().Current.ID)
		require.Equal(t, "Secret istio-system/istio-ca-secret", r.keeper.Progress().Source)
		_, err := client.CoreV1().Secrets(systemNS).Get(t.Context(), PluggedInSecret, metav1.GetOptions{})
		require.Error(t, err)
	})
	t.Run("plugged in", func(t *testing.T) {
		c, api := newClock(), apifake.New(t)
		client := api.Client(t)
		theirs := newIntermediate(t, newRoot(t, "corp", c.Now(), 3650*24*time.Hour), "east", c.Now(), 10*24*time.Hour)
		putCACerts(t, client, theirs)
		r := cacertsReplica(t, "x", c, client, t.TempDir())
		r.look(t)
		require.Equal(t, theirs.ID(), r.keeper.Progress().Current.ID)
		c.Add(9 * 24 * time.Hour)
		r.look(t)
		require.Equal(t, PhaseIdle, r.keeper.Progress().Phase, "it is the operator's to renew")
		self := r.keeper.cfg.Sources[2].(*SelfSigned)
		_, err := self.Load(t.Context())
		require.ErrorContains(t, err, "not marked istio-generated")
	})
	t.Run("without the setting a generated one is as good as an operator's", func(t *testing.T) {
		c, api := newClock(), apifake.New(t)
		client := api.Client(t)
		first := cacertsReplica(t, "x", c, client, t.TempDir())
		first.look(t)
		r := newReplica(t, "y", c, client)
		r.look(t)
		require.Equal(t, first.keeper.Progress().Current.ID, r.keeper.Progress().Current.ID)
	})
}
