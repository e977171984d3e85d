package apiserver

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// SystemNamespace is where readers live.
const SystemNamespace = "istio-system"

// tokenLife of all tokens: longer than any test.
const tokenLife = 24 * time.Hour

// EnsureNamespace creates a namespace unless it exists, and waits until pods
// can be created in it.
func (c *Cluster) EnsureNamespace(ctx context.Context, name string) error {
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := c.client.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{})
	if err := c.created("namespace "+name, err); err != nil {
		return err
	}
	err = poll(ctx, func(ctx context.Context) (bool, error) {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("wait for default service account of %s in %s: %w", name, c.cfg.Name, err)
	}
	return nil
}

// Token returns a token of a ServiceAccount, as the TokenRequest API issues
// it, valid for the audiences given, or for the API server if none is. The
// namespace and the ServiceAccount are created unless they exist.
func (c *Cluster) Token(ctx context.Context, namespace, account string, audiences ...string) (string, error) {
	if err := c.EnsureNamespace(ctx, namespace); err != nil {
		return "", err
	}
	accounts := c.client.CoreV1().ServiceAccounts(namespace)
	object := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}
	_, err := accounts.Create(ctx, object, metav1.CreateOptions{})
	if err := c.created("service account "+account, err); err != nil {
		return "", err
	}
	seconds := int64(tokenLife.Seconds())
	answer, err := accounts.CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, ExpirationSeconds: &seconds},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request token of %s/%s in %s: %w", namespace, account, c.cfg.Name, err)
	}
	return answer.Status.Token, nil
}

// ReaderKubeconfig returns what a remote secret carries: a kubeconfig with the
// bearer token of a ServiceAccount that may read what a control plane reads.
// The account, of that name in istio-system, and its rights are made unless
// they exist; a further call returns a fresh token beside the old ones.
func (c *Cluster) ReaderKubeconfig(ctx context.Context, name string) ([]byte, error) {
	token, err := c.Token(ctx, SystemNamespace, name)
	if err != nil {
		return nil, err
	}
	roles := c.client.RbacV1()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: readerRules()}
	_, err = roles.ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	if err := c.created("cluster role "+name, err); err != nil {
		return nil, err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: SystemNamespace, Name: name}},
	}
	_, err = roles.ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	if err := c.created("cluster role binding "+name, err); err != nil {
		return nil, err
	}
	if err := c.waitReader(ctx, name); err != nil {
		return nil, fmt.Errorf("wait for rights of %s in %s: %w", name, c.cfg.Name, err)
	}
	cluster := &clientcmdapi.Cluster{Server: c.url, CertificateAuthorityData: c.rest.CAData}
	return writeKubeconfig(c.cfg.Name, name, cluster, &clientcmdapi.AuthInfo{Token: token})
}

// RevokeReader takes back what ReaderKubeconfig gave: every token of the
// account is refused from the next request on. Watches that are open go on,
// as they do on any Kubernetes.
func (c *Cluster) RevokeReader(ctx context.Context, name string) error {
	err := c.client.CoreV1().ServiceAccounts(SystemNamespace).Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil {
		return fmt.Errorf("delete service account %s in %s: %w", name, c.cfg.Name, err)
	}
	for _, remove := range []func(context.Context, string, metav1.DeleteOptions) error{
		c.client.RbacV1().ClusterRoleBindings().Delete, c.client.RbacV1().ClusterRoles().Delete,
	} {
		if err := remove(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete rights of %s in %s: %w", name, c.cfg.Name, err)
		}
	}
	return nil
}

// readerRules are about those of istio-reader.
func readerRules() []rbacv1.PolicyRule {
	read := []string{"get", "list", "watch"}
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Verbs: read, Resources: []string{
			"endpoints", "pods", "services", "nodes", "replicationcontrollers",
			"namespaces", "secrets", "configmaps", "serviceaccounts",
		}},
		{APIGroups: []string{"apps"}, Verbs: read, Resources: []string{"replicasets"}},
		{APIGroups: []string{"discovery.k8s.io"}, Verbs: read, Resources: []string{"endpointslices"}},
		{APIGroups: []string{"apiextensions.k8s.io"}, Verbs: read, Resources: []string{"customresourcedefinitions"}},
		{APIGroups: []string{
			"config.istio.io", "security.istio.io", "networking.istio.io", "telemetry.istio.io",
			"extensions.istio.io", "authentication.istio.io", "rbac.istio.io", "gateway.networking.k8s.io",
		}, Verbs: read, Resources: []string{"*"}},
		{APIGroups: []string{"multicluster.x-k8s.io"}, Verbs: read, Resources: []string{"serviceexports", "serviceimports"}},
		{APIGroups: []string{"authentication.k8s.io"}, Verbs: []string{"create"}, Resources: []string{"tokenreviews"}},
		{APIGroups: []string{"authorization.k8s.io"}, Verbs: []string{"create"}, Resources: []string{"subjectaccessreviews"}},
	}
}

// waitReader waits until the authorizer has seen the rights of an account.
func (c *Cluster) waitReader(ctx context.Context, name string) error {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:" + SystemNamespace + ":" + name,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "services"},
	}}
	return poll(ctx, func(ctx context.Context) (bool, error) {
		answer, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		return err == nil && answer.Status.Allowed, err
	})
}

// created takes the error of a create; that it exists already is none.
func (c *Cluster) created(what string, err error) error {
	if err == nil || apierrors.IsAlreadyExists(err) {
		return nil
	}
	return fmt.Errorf("create %s in %s: %w", what, c.cfg.Name, err)
}

// writeKubeconfig writes a kubeconfig with one cluster, user and context.
func writeKubeconfig(name, user string, cluster *clientcmdapi.Cluster, auth *clientcmdapi.AuthInfo) ([]byte, error) {
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = cluster
	cfg.AuthInfos[user] = auth
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: user}
	cfg.CurrentContext = name
	raw, err := clientcmd.Write(*cfg)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	return raw, nil
}

// poll asks until the condition holds, fails, or has taken far too long.
func poll(ctx context.Context, condition wait.ConditionWithContextFunc) error {
	return wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, 30*time.Second, true, condition)
}
