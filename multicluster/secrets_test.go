package multicluster

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

func remoteSecret(namespace, name, version string, labels map[string]string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: version, Labels: labels}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func TestSecretsAreRead(t *testing.T) {
	label := map[string]string{SecretLabel: "true"}
	client := fake.NewClientset(
		remoteSecret("istio-system", "a", "1", label, map[string]string{"c3": "x", "c2": "y"}),
		remoteSecret("istio-system", "unlabelled", "1", nil, map[string]string{"no": "x"}),
		remoteSecret("istio-system", "off", "1", map[string]string{SecretLabel: "false"}, map[string]string{"no": "x"}),
		remoteSecret("elsewhere", "b", "1", label, map[string]string{"no": "x"}),
	)
	ctx, cancel := context.WithCancel(t.Context())
	reports, done := make(chan snapshot, 10), make(chan error, 1)
	go func() {
		done <- newSecrets(client, "istio-system").run(ctx, func(s snapshot) { reports <- s }, func(m string) {
			if m != "" {
				t.Error(m)
			}
		})
	}()
	s := <-reports
	require.Len(t, s.objects, 1)
	o := s.objects[0]
	require.Equal(t, "istio-system/a", o.origin.String())
	require.Len(t, o.entries, 2)
	require.EqualValues(t, "c2", o.entries[0].id)
	require.Equal(t, contentOf([]byte("y")), o.entries[0].content)

	require.NoError(t, client.CoreV1().Secrets("istio-system").Delete(ctx, "a", metav1.DeleteOptions{}))
	for len(s.objects) > 0 { // the first report may come twice
		s = <-reports
	}
	cancel()
	require.NoError(t, <-done)
}

func TestSecretsThatCannotBeRead(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("list", "secrets", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "", errors.New("no"))
	})
	ctx, cancel := context.WithCancel(t.Context())
	failures, done := make(chan string, 100), make(chan error, 1)
	go func() {
		done <- newSecrets(client, "istio-system").run(ctx, func(snapshot) { t.Error("reported what was not read") },
			func(m string) { failures <- m })
	}()
	require.Contains(t, <-failures, "grant get, list and watch on secrets")
	cancel()
	require.NoError(t, <-done)
}

func TestDescribeWatchErrors(t *testing.T) {
	s := newSecrets(nil, "istio-system")
	require.Empty(t, s.describe(nil))
	require.Empty(t, s.describe(context.Canceled))
	require.Empty(t, s.describe(apierrors.NewResourceExpired("too old")))
	require.Contains(t, s.describe(apierrors.NewUnauthorized("no")), "grant")
	require.Contains(t, s.describe(errors.New("refused")), "namespace istio-system in the primary: refused")
}

func TestReadHashesEachVersionOnce(t *testing.T) {
	s := newSecrets(nil, "n")
	first := s.read([]any{remoteSecret("n", "a", "1", nil, map[string]string{"c": "x"}), "not a secret"})
	// The same version with other content cannot be: it shows that nothing was read anew.
	same := s.read([]any{remoteSecret("n", "a", "1", nil, map[string]string{"c": "changed"})})
	require.Equal(t, first, same)
	next := s.read([]any{remoteSecret("n", "a", "2", nil, map[string]string{"c": "changed"})})
	require.NotEqual(t, first, next)
	require.Empty(t, s.read(nil).objects)
	require.Empty(t, s.seen, "what left is forgotten")
}
