package multicluster

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	k8stesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite golden files")

// testCA is fixed, for the golden file. It is only ever parsed.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDEwR0ZXN0MB4X
-----END CERTIFICATE-----
`

// remoteCluster is a fake API server whose token controller fills token Secrets.
func remoteCluster(t testing.TB, fill bool, objects ...runtime.Object) (*fake.Clientset, string) {
	ca, _ := selfSigned(t)
	client := fake.NewClientset(append(objects,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "0af2c1"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt", Namespace: "istio-system"}, Data: map[string]string{"ca.crt": ca}})...)
	if fill {
		client.PrependReactor("get", "secrets", func(a k8stesting.Action) (bool, runtime.Object, error) {
			get := a.(k8stesting.GetAction)
			o, err := client.Tracker().Get(a.GetResource(), a.GetNamespace(), get.GetName())
			if err != nil {
				return true, nil, err
			}
			s := o.(*corev1.Secret).DeepCopy()
			s.Data = map[string][]byte{"token": []byte(secretToken), "ca.crt": []byte(ca)}
			return true, s, nil
		})
	}
	client.PrependReactor("create", "serviceaccounts", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		r := a.(k8stesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: "short-lived",
			ExpirationTimestamp: metav1.NewTime(time.Unix(1_700_000_000+*r.Spec.ExpirationSeconds, 0))}}, nil
	})
	return client, ca
}

func reader() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: ReaderAccount, Namespace: SystemNamespace}}
}

func TestCreateRemoteSecret(t *testing.T) {
	client, ca := remoteCluster(t, true, reader())
	s, err := CreateRemoteSecret(t.Context(), RemoteSecretOptions{Client: client, RESTConfig: &rest.Config{Host: "https://10.9.8.7:6443"}, Name: "c2"})
	require.NoError(t, err)
	require.Equal(t, "istio-remote-secret-c2", s.Name)
	require.Equal(t, "istio-system", s.Namespace)
	require.Equal(t, map[string]string{"istio/multiCluster": "true"}, s.Labels)
	require.Equal(t, map[string]string{"networking.istio.io/cluster": "c2"}, s.Annotations)
	require.Len(t, s.StringData, 1)

	var f kubeconfig
	require.NoError(t, yaml.Unmarshal([]byte(s.StringData["c2"]), &f))
	require.Equal(t, "c2", f.CurrentContext)
	require.Equal(t, "c2", f.Contexts[0].Name)
	require.Equal(t, "c2", f.Contexts[0].Context.Cluster)
	require.Equal(t, "c2", f.Contexts[0].Context.User)
	require.Equal(t, namedCluster{Name: "c2", Cluster: clusterFields{Server: "https://10.9.8.7:6443", CertificateAuthorityData: b64(ca)}}, f.Clusters[0])
	require.Equal(t, namedUser{Name: "c2", User: userFields{Token: secretToken}}, f.Users[0])

	token, err := client.CoreV1().Secrets("istio-system").Get(t.Context(), "istio-reader-service-account-istio-remote-secret-token", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, corev1.SecretTypeServiceAccountToken, token.Type)

	again, err := CreateRemoteSecret(t.Context(), RemoteSecretOptions{Client: client, Server: "https://10.9.8.7:6443", Name: "c2"})
	require.NoError(t, err, "the token Secret is used again")
	require.Equal(t, s, again)
}

func TestCreateRemoteSecretVariants(t *testing.T) {
	client, _ := remoteCluster(t, true, reader())
	otherCA, _ := selfSigned(t)
	s, err := CreateRemoteSecret(t.Context(), RemoteSecretOptions{Client: client, Server: "https://api.example.com",
		TokenLifetime: time.Hour, CAData: []byte(otherCA)})
	require.NoError(t, err)
	require.Equal(t, "istio-remote-secret-0af2c1", s.Name, "named after kube-system's UID")
	require.Equal(t, "2023-11-14T23:13:20Z", s.Annotations[ExpiryAnnotation])
	cfg, err := Sanitize([]byte(s.StringData["0af2c1"]), Options{})
	require.NoError(t, err)
	require.Equal(t, "short-lived", cfg.BearerToken)
	require.Equal(t, otherCA, string(cfg.CAData))

	s, err = CreateRemoteSecret(t.Context(), RemoteSecretOptions{Client: client, Server: "https://api.example.com", Name: "c3", TokenLifetime: time.Hour})
	require.NoError(t, err)
	cfg, err = Sanitize([]byte(s.StringData["c3"]), Options{})
	require.NoError(t, err)
	require.NotEmpty(t, cfg.CAData, "from the published root")
}

func TestCreateReader(t *testing.T) {
	client, _ := remoteCluster(t, true)
	o := RemoteSecretOptions{Client: client, Server: "https://h", Name: "c2"}
	_, err := CreateRemoteSecret(t.Context(), o)
	require.ErrorContains(t, err, "service account istio-system/istio-reader-service-account: it does not exist")
	o.CreateReader = true
	for range 2 { // it leaves what is there as it is
		_, err = CreateRemoteSecret(t.Context(), o)
		require.NoError(t, err)
	}
	_, err = client.CoreV1().Namespaces().Get(t.Context(), "istio-system", metav1.GetOptions{})
	require.NoError(t, err)
	role, err := client.RbacV1().ClusterRoles().Get(t.Context(), "isthmus-reader-istio-system", metav1.GetOptions{})
	require.NoError(t, err)
	for _, r := range role.Rules {
		require.NotContains(t, r.Resources, "secrets")
		require.NotContains(t, r.Resources, "*")
	}
	binding, err := client.RbacV1().ClusterRoleBindings().Get(t.Context(), "isthmus-reader-istio-system", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, ReaderAccount, binding.Subjects[0].Name)
}

func TestCreateRemoteSecretFailures(t *testing.T) {
	forbid := func(verb, resource string) func(*fake.Clientset) {
		return func(c *fake.Clientset) {
			c.PrependReactor(verb, resource, func(k8stesting.Action) (bool, runtime.Object, error) {
				return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "x", errors.New("no"))
			})
		}
	}
	for name, tt := range map[string]struct {
		edit func(*RemoteSecretOptions)
		with func(*fake.Clientset)
		want []string
	}{
		"no server":   {edit: func(o *RemoteSecretOptions) { o.Server = "" }, want: []string{"--server"}},
		"bad name":    {edit: func(o *RemoteSecretOptions) { o.Name = "C_2" }, want: []string{`"C_2"`, "DNS-1123"}},
		"no client":   {edit: func(o *RemoteSecretOptions) { o.Client = nil }, want: []string{"Client"}},
		"plain http":  {edit: func(o *RemoteSecretOptions) { o.Server = "http://h" }, want: []string{"cluster c2", "would refuse it", "server"}},
		"link-local":  {edit: func(o *RemoteSecretOptions) { o.Server = "https://169.254.0.1" }, want: []string{"would refuse it"}},
		"kube-system": {edit: func(o *RemoteSecretOptions) { o.Name = "" }, with: forbid("get", "namespaces"), want: []string{"permission to get namespaces in the whole cluster", "--name"}},
		"account":     {with: forbid("get", "serviceaccounts"), want: []string{"can-i get serviceaccounts -n istio-system"}},
		"create account": {edit: func(o *RemoteSecretOptions) { o.CreateReader = true }, with: forbid("create", "clusterroles"),
			want: []string{"create cluster role isthmus-reader-istio-system", "permission to create clusterroles"}},
		"token secret": {with: forbid("create", "secrets"), want: []string{"permission to create secrets in namespace istio-system"}},
		"token request": {edit: func(o *RemoteSecretOptions) { o.TokenLifetime = time.Hour }, with: forbid("create", "serviceaccounts"),
			want: []string{"can-i create serviceaccounts/token -n istio-system"}},
		"root": {edit: func(o *RemoteSecretOptions) { o.TokenLifetime = time.Hour }, with: forbid("get", "configmaps"),
			want: []string{"kube-root-ca.crt", "permission to get configmaps"}},
	} {
		t.Run(name, func(t *testing.T) {
			client, _ := remoteCluster(t, true, reader())
			if tt.with != nil {
				tt.with(client)
			}
			o := RemoteSecretOptions{Client: client, Server: "https://h", Name: "c2"}
			if tt.edit != nil {
				tt.edit(&o)
			}
			_, err := CreateRemoteSecret(t.Context(), o)
			require.Error(t, err)
			for _, w := range tt.want {
				require.ErrorContains(t, err, w)
			}
		})
	}
}

func TestTokenSecretOfAnother(t *testing.T) {
	client, _ := remoteCluster(t, false, reader(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: SystemNamespace, Name: ReaderAccount + "-istio-remote-secret-token"}})
	_, err := CreateRemoteSecret(t.Context(), RemoteSecretOptions{Client: client, Server: "https://h", Name: "c2"})
	require.ErrorContains(t, err, "delete or rename it")
}

func TestTokenThatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := remoteCluster(t, false, reader())
		start := time.Now()
		_, err := CreateRemoteSecret(t.Context(), RemoteSecretOptions{Client: client, Server: "https://h", Name: "c2"})
		require.ErrorContains(t, err, "not filled within 20s")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, DefaultWait, time.Since(start))
	})
}

func TestEncode(t *testing.T) {
	raw, err := remoteKubeconfig("c2", "https://10.9.8.7:6443", credential{token: "t0ken", ca: []byte(testCA)})
	require.NoError(t, err)
	s := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: "istio-remote-secret-c2", Namespace: "istio-system",
			Labels: map[string]string{SecretLabel: "true"}, Annotations: map[string]string{ClusterAnnotation: "c2"}},
		StringData: map[string]string{"c2": string(raw)}}
	got, err := Encode(s)
	require.NoError(t, err)
	golden := filepath.Join("testdata", "remote-secret.yaml")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, got, 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
	require.NotContains(t, string(got), "status")
}
