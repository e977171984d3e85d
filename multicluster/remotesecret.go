package multicluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

// Names that users of istioctl know.
const (
	// SecretPrefix and the cluster's name make the name of a remote secret.
	SecretPrefix = "istio-remote-secret-"
	// ClusterAnnotation on a remote secret names its cluster.
	ClusterAnnotation = "networking.istio.io/cluster"
	// ExpiryAnnotation says when the token in a remote secret ends (RFC 3339).
	ExpiryAnnotation = "isthmus.io/token-expires"
	// WeightAnnotation on a remote secret is how much of its share of the traffic
	// the cluster gets, in percent from 0 to 100; 0 drains it.
	WeightAnnotation = "isthmus.io/weight"
	// ReaderAccount is the ServiceAccount that remote clusters are read as.
	ReaderAccount = "istio-reader-service-account"
	// SystemNamespace is where the control plane lives by default.
	SystemNamespace = "istio-system"
)

// DefaultWait is how long CreateRemoteSecret waits for a token.
const DefaultWait = 20 * time.Second

// RemoteSecretOptions say which cluster to join and how.
type RemoteSecretOptions struct {
	// Client and RESTConfig reach the cluster that is to be joined, as somebody
	// who may create what is needed there.
	Client     kubernetes.Interface
	RESTConfig *rest.Config
	// Name is the cluster's ID in the mesh, a DNS-1123 label. If "", the UID of
	// its namespace kube-system.
	Name string
	// ServiceAccount is whom the control plane reads the cluster as, ReaderAccount
	// if "". Namespace is where that account is, and where the Secret is to be
	// applied in the primary; SystemNamespace if "".
	ServiceAccount, Namespace string
	// Server is the URL under which the control plane reaches the API server, that
	// of RESTConfig if "".
	Server string
	// CAData verifies the server, in PEM form; the cluster's own authority if nil.
	CAData []byte
	// TokenLifetime asks for a token that ends. If 0, a token Secret is made, whose
	// token is valid until that Secret or the account is deleted.
	TokenLifetime time.Duration
	// CreateReader makes namespace, account and rights unless they exist.
	CreateReader bool
	// Wait bounds the waiting for the token, DefaultWait if 0.
	Wait time.Duration
	// Allow is what the control plane that will read the Secret allows.
	Allow Options
}

func (o RemoteSecretOptions) withDefaults() RemoteSecretOptions {
	o.ServiceAccount = cmp.Or(o.ServiceAccount, ReaderAccount)
	o.Namespace = cmp.Or(o.Namespace, SystemNamespace)
	o.Wait = cmp.Or(o.Wait, DefaultWait)
	if o.RESTConfig != nil {
		o.Server = cmp.Or(o.Server, o.RESTConfig.Host)
	}
	return o
}

// CreateRemoteSecret returns the Secret that joins a cluster to the mesh, in
// the form that istioctl gives it, to be applied in the primary. It speaks only
// to the cluster that is to be joined. Errors name the object and, where that
// is the cause, the permission that is missing.
func CreateRemoteSecret(ctx context.Context, o RemoteSecretOptions) (*corev1.Secret, error) {
	o = o.withDefaults()
	if o.Client == nil {
		return nil, errors.New("create remote secret: Client is missing")
	}
	name, err := clusterName(ctx, o)
	if err != nil {
		return nil, err
	}
	if o.Server == "" {
		return nil, errors.New("create remote secret: the server's URL is missing; name it with --server https://HOST:PORT")
	}
	if err := ensureReader(ctx, o); err != nil {
		return nil, err
	}
	cred, err := credentialFor(ctx, o)
	if err != nil {
		return nil, err
	}
	kubeconfig, err := remoteKubeconfig(name, o.Server, cred)
	if err != nil {
		return nil, err
	}
	// What the control plane would refuse is better refused here.
	if _, err := Sanitize(kubeconfig, o.Allow); err != nil {
		return nil, fmt.Errorf("create remote secret of cluster %s: the control plane would refuse it: %w", name, err)
	}
	secret := &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Name: SecretPrefix + name, Namespace: o.Namespace,
			Labels:      map[string]string{SecretLabel: "true"},
			Annotations: map[string]string{ClusterAnnotation: name},
		},
		StringData: map[string]string{name: string(kubeconfig)},
	}
	if !cred.expires.IsZero() {
		secret.Annotations[ExpiryAnnotation] = cred.expires.UTC().Format(time.RFC3339)
	}
	return secret, nil
}

// Encode renders a Secret as YAML for kubectl apply.
func Encode(secret *corev1.Secret) ([]byte, error) {
	out, err := yaml.Marshal(secret)
	if err != nil {
		return nil, fmt.Errorf("encode secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	return out, nil
}

func clusterName(ctx context.Context, o RemoteSecretOptions) (string, error) {
	name := o.Name
	if name == "" {
		ns, err := o.Client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
		if err != nil {
			return "", explain(err, "get namespace kube-system for the cluster's name (or give --name)", "get", "namespaces", "")
		}
		name = string(ns.UID)
	}
	if wrong := validation.IsDNS1123Label(name); len(wrong) > 0 {
		return "", fmt.Errorf("create remote secret: cluster name %q is not a DNS-1123 label: %s", printable(name), strings.Join(wrong, "; "))
	}
	return name, nil
}

// credential is what goes into the kubeconfig.
type credential struct {
	token   string
	ca      []byte
	expires time.Time
}

func credentialFor(ctx context.Context, o RemoteSecretOptions) (credential, error) {
	var c credential
	var err error
	if o.TokenLifetime > 0 {
		c, err = requestToken(ctx, o)
	} else {
		c, err = tokenSecret(ctx, o)
	}
	if o.CAData != nil {
		c.ca = o.CAData
	}
	return c, err
}

// requestToken asks for a token that ends.
func requestToken(ctx context.Context, o RemoteSecretOptions) (credential, error) {
	seconds := int64(o.TokenLifetime / time.Second)
	answer, err := o.Client.CoreV1().ServiceAccounts(o.Namespace).CreateToken(ctx, o.ServiceAccount,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		return credential{}, explain(err, "request token of service account "+o.Namespace+"/"+o.ServiceAccount,
			"create", "serviceaccounts/token", o.Namespace)
	}
	c := credential{token: answer.Status.Token, expires: answer.Status.ExpirationTimestamp.Time}
	if o.CAData != nil {
		return c, nil
	}
	const published = "kube-root-ca.crt"
	root, err := o.Client.CoreV1().ConfigMaps(o.Namespace).Get(ctx, published, metav1.GetOptions{})
	if err != nil {
		return credential{}, explain(err, "get config map "+o.Namespace+"/"+published+" for the cluster's certificate authority",
			"get", "configmaps", o.Namespace)
	}
	c.ca = []byte(root.Data["ca.crt"])
	return c, nil
}

// tokenSecret makes a token Secret unless it exists, and waits until it is filled.
func tokenSecret(ctx context.Context, o RemoteSecretOptions) (credential, error) {
	name := o.ServiceAccount + "-istio-remote-secret-token"
	secrets := o.Client.CoreV1().Secrets(o.Namespace)
	_, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: o.ServiceAccount}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return credential{}, explain(err, "create token secret "+o.Namespace+"/"+name, "create", "secrets", o.Namespace)
	}
	var c credential
	err = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, o.Wait, true, func(ctx context.Context) (bool, error) {
		s, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, explain(err, "get token secret "+o.Namespace+"/"+name, "get", "secrets", o.Namespace)
		}
		if s.Type != corev1.SecretTypeServiceAccountToken || s.Annotations[corev1.ServiceAccountNameKey] != o.ServiceAccount {
			return false, fmt.Errorf("secret %s/%s exists but is not a token of service account %s; delete or rename it", o.Namespace, name, o.ServiceAccount)
		}
		c = credential{token: string(s.Data[corev1.ServiceAccountTokenKey]), ca: s.Data[corev1.ServiceAccountRootCAKey]}
		return c.token != "" && len(c.ca) > 0, nil
	})
	if wait.Interrupted(err) {
		return credential{}, fmt.Errorf("wait for token in secret %s/%s: not filled within %s: does the cluster run the service account token controller? %w",
			o.Namespace, name, o.Wait, err)
	}
	return c, err
}

// remoteKubeconfig writes a kubeconfig in which cluster, user and context have
// the cluster's name.
func remoteKubeconfig(name, server string, c credential) ([]byte, error) {
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: c.ca}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: c.token}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	out, err := clientcmd.Write(*cfg)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig of cluster %s: %w", name, err)
	}
	return out, nil
}

// explain adds the permission that is missing, if that is the cause.
func explain(err error, what, verb, resource, namespace string) error {
	where := "in the whole cluster"
	flag := ""
	if namespace != "" {
		where, flag = "in namespace "+namespace, " -n "+namespace
	}
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("%s: your account lacks the permission to %s %s %s (check: kubectl auth can-i %s %s%s): %w",
			what, verb, resource, where, verb, resource, flag, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
