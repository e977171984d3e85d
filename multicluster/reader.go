package multicluster

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ensureReader checks that the account exists, or makes it with its rights.
func ensureReader(ctx context.Context, o RemoteSecretOptions) error {
	if o.CreateReader {
		return createReader(ctx, o)
	}
	_, err := o.Client.CoreV1().ServiceAccounts(o.Namespace).Get(ctx, o.ServiceAccount, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("get service account %s/%s: it does not exist; create it with its rights with --create-service-account, or install the remote profile: %w",
			o.Namespace, o.ServiceAccount, err)
	}
	if err != nil {
		return explain(err, "get service account "+o.Namespace+"/"+o.ServiceAccount, "get", "serviceaccounts", o.Namespace)
	}
	return nil
}

// createReader makes what is missing and leaves what is there as it is.
func createReader(ctx context.Context, o RemoteSecretOptions) error {
	name := "isthmus-reader-" + o.Namespace
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/managed-by": "isthmus"}}
	}
	role := func(kind string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
	}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: o.Namespace, Name: o.ServiceAccount}}
	api, opts := o.Client, metav1.CreateOptions{}
	steps := []struct {
		what, resource, namespace string
		create                    func() error
	}{
		{"namespace " + o.Namespace, "namespaces", "", func() error {
			_, err := api.CoreV1().Namespaces().Get(ctx, o.Namespace, metav1.GetOptions{})
			if err == nil { // who may not create namespaces needs not
				return nil
			}
			_, err = api.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Namespace}}, opts)
			return err
		}},
		{"service account " + o.Namespace + "/" + o.ServiceAccount, "serviceaccounts", o.Namespace, func() error {
			_, err := api.CoreV1().ServiceAccounts(o.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta(o.ServiceAccount)}, opts)
			return err
		}},
		{"cluster role " + name, "clusterroles", "", func() error {
			_, err := api.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta(name), Rules: readerRules()}, opts)
			return err
		}},
		{"cluster role binding " + name, "clusterrolebindings", "", func() error {
			_, err := api.RbacV1().ClusterRoleBindings().Create(ctx,
				&rbacv1.ClusterRoleBinding{ObjectMeta: meta(name), RoleRef: role("ClusterRole"), Subjects: subjects}, opts)
			return err
		}},
		{"role " + o.Namespace + "/" + name, "roles", o.Namespace, func() error {
			_, err := api.RbacV1().Roles(o.Namespace).Create(ctx, &rbacv1.Role{ObjectMeta: meta(name), Rules: systemReaderRules(o.ServiceAccount)}, opts)
			return err
		}},
		{"role binding " + o.Namespace + "/" + name, "rolebindings", o.Namespace, func() error {
			_, err := api.RbacV1().RoleBindings(o.Namespace).Create(ctx,
				&rbacv1.RoleBinding{ObjectMeta: meta(name), RoleRef: role("Role"), Subjects: subjects}, opts)
			return err
		}},
	}
	for _, s := range steps {
		if err := s.create(); err != nil && !apierrors.IsAlreadyExists(err) {
			return explain(err, "create "+s.what, "create", s.resource, s.namespace)
		}
	}
	return nil
}

// readerRules are what the control plane needs in the whole of a remote
// cluster. Secrets are not among it.
func readerRules() []rbacv1.PolicyRule {
	read := []string{"get", "list", "watch"}
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"services", "pods", "nodes", "namespaces"}, Verbs: read},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		{APIGroups: []string{"gateway.networking.k8s.io"}, Resources: []string{"gateways"}, Verbs: read},
		{APIGroups: []string{"networking.istio.io"}, Resources: []string{"workloadentries"}, Verbs: read},
		{APIGroups: []string{"multicluster.x-k8s.io"}, Resources: []string{"serviceexports", "serviceimports"}, Verbs: read},
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
		{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
	}
}

// systemReaderRules are what it needs in the system namespace: the cluster's
// own mesh configuration, and a new token for itself before the old one ends.
func systemReaderRules(account string) []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{account}, Verbs: []string{"create"}},
	}
}
