package dropin

import (
	"slices"
	"strings"

	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// The rights of istiod's accounts, verb by verb and resource by resource, as
// Istio's charts grant them: the discovery chart's roles for the control plane and
// for the reader. They are written down here because they are what counts for
// somebody who changes the image only.

func rule(group, resources string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: fields(group), Resources: fields(resources), Verbs: verbs}
}

// fields splits at spaces; "core" is the group without a name.
func fields(s string) []string {
	out := strings.Fields(s)
	for i := range out {
		if out[i] == "core" {
			out[i] = ""
		}
	}
	return out
}

func read() []string { return []string{"get", "list", "watch"} }

func write(more ...string) []string { return append(read(), more...) }

const istioGroups = "config.istio.io security.istio.io networking.istio.io authentication.istio.io rbac.istio.io telemetry.istio.io extensions.istio.io"

// controlRights are those of istiod in its own cluster, everywhere.
func controlRights() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule("admissionregistration.k8s.io", "mutatingwebhookconfigurations", write("update", "patch")...),
		rule("admissionregistration.k8s.io", "validatingwebhookconfigurations", write("update")...),
		rule(istioGroups, "*", read()...),
		rule("networking.istio.io", "workloadentries workloadentries/status serviceentries/status", write("update", "patch", "create", "delete")...),
		rule("security.istio.io", "authorizationpolicies/status", write("update", "patch", "create", "delete")...),
		rule("core", "services/status", write("update", "patch", "create", "delete")...),
		rule("apiextensions.k8s.io", "customresourcedefinitions", read()...),
		rule("core", "pods nodes services namespaces endpoints secrets", read()...),
		rule("discovery.k8s.io", "endpointslices", read()...),
		rule("networking.k8s.io", "ingresses ingressclasses", read()...),
		rule("networking.k8s.io", "ingresses/status", "*"),
		rule("core", "configmaps", write("create", "update")...),
		rule("authentication.k8s.io", "tokenreviews", "create"),
		rule("authorization.k8s.io", "subjectaccessreviews", "create"),
		rule("gateway.networking.k8s.io gateway.networking.x-k8s.io", "*", read()...),
		rule("gateway.networking.k8s.io", "backendtlspolicies/status gatewayclasses/status gateways/status grpcroutes/status httproutes/status "+
			"referencegrants/status tcproutes/status tlsroutes/status udproutes/status", "update", "patch"),
		rule("gateway.networking.k8s.io", "gatewayclasses", "create", "update", "patch", "delete"),
		rule("multicluster.x-k8s.io", "serviceexports", write("create", "delete")...),
		rule("multicluster.x-k8s.io", "serviceimports", read()...),
	}
}

// gatewayRights are those with which istiod keeps Deployments of gateways.
func gatewayRights() []rbacv1.PolicyRule {
	all := write("update", "patch", "create", "delete")
	return []rbacv1.PolicyRule{rule("apps", "deployments", all...), rule("autoscaling", "horizontalpodautoscalers", all...),
		rule("policy", "poddisruptionbudgets", all...), rule("core", "services serviceaccounts", all...)}
}

// ownRights are those of istiod in its own namespace.
func ownRights() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule("networking.istio.io", "gateways", "create"),
		rule("core", "secrets", write("create", "update", "delete")...),
		rule("core", "configmaps", "delete"),
		rule("coordination.k8s.io", "leases", "get", "update", "patch", "create"),
	}
}

// readerRights are those of the account that remote secrets carry; with the chart
// for remotes it may write roots and bundles.
func readerRights(remote bool) []rbacv1.PolicyRule {
	out := []rbacv1.PolicyRule{
		rule(istioGroups, "*", read()...),
		rule("core", "endpoints pods services nodes replicationcontrollers namespaces secrets configmaps", read()...),
		rule("networking.x-k8s.io gateway.networking.k8s.io", "gateways", read()...),
		rule("apiextensions.k8s.io", "customresourcedefinitions", read()...),
		rule("discovery.k8s.io", "endpointslices", read()...),
		rule("multicluster.x-k8s.io", "serviceexports", write("create", "delete")...),
		rule("multicluster.x-k8s.io", "serviceimports", read()...),
		rule("apps", "replicasets", read()...),
		rule("authentication.k8s.io", "tokenreviews", "create"),
		rule("authorization.k8s.io", "subjectaccessreviews", "create"),
	}
	if remote {
		out = append(out,
			rule("core", "configmaps", write("create", "update")...),
			rule("admissionregistration.k8s.io", "mutatingwebhookconfigurations", write("update", "patch")...),
			rule("admissionregistration.k8s.io", "validatingwebhookconfigurations", write("update")...))
	}
	return out
}

// without takes resources out of rules, as older charts do not have them.
func without(rules []rbacv1.PolicyRule, resources ...string) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for _, r := range rules {
		r.Resources = slices.DeleteFunc(slices.Clone(r.Resources), func(x string) bool { return slices.Contains(resources, x) })
		if len(r.Resources) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// allow grants an account of the system namespace rights, everywhere or there,
// in the place of what it had.
func (w *world) allow(c *apiserver.Cluster, account, role string, everywhere bool, rules []rbacv1.PolicyRule) {
	w.t.Helper()
	api := c.Client().RbacV1()
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: system, Name: account}}
	meta := metav1.ObjectMeta{Name: role, Labels: map[string]string{"app": "istiod", "release": "istiod"}}
	var err error
	if everywhere {
		_ = api.ClusterRoles().Delete(w.ctx, role, metav1.DeleteOptions{})
		_ = api.ClusterRoleBindings().Delete(w.ctx, role, metav1.DeleteOptions{})
		_, err = api.ClusterRoles().Create(w.ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
		require.NoError(w.t, err)
		_, err = api.ClusterRoleBindings().Create(w.ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}}, metav1.CreateOptions{})
	} else {
		_ = api.Roles(system).Delete(w.ctx, role, metav1.DeleteOptions{})
		_ = api.RoleBindings(system).Delete(w.ctx, role, metav1.DeleteOptions{})
		_, err = api.Roles(system).Create(w.ctx, &rbacv1.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
		require.NoError(w.t, err)
		_, err = api.RoleBindings(system).Create(w.ctx, &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role}}, metav1.CreateOptions{})
	}
	require.NoError(w.t, err)
}
