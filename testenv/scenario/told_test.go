package scenario

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config/status"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

// poison are objects that the API server takes and that cannot be served, by
// resource; each is called by its resource.
func poison(label string) map[string]string {
	head := func(kind, version, name, spec string) string {
		return fmt.Sprintf("\napiVersion: networking.istio.io/%s\nkind: %s\nmetadata: {name: %s, namespace: shop%s}\nspec: %s\n---\n", version, kind, name, label, spec)
	}
	return map[string]string{
		"virtualservices": head("VirtualService", "v1", "virtualservices",
			`{hosts: [web], http: [{match: [{uri: {regex: "("}}], route: [{destination: {host: web}}]}]}`),
		"destinationrules": head("DestinationRule", "v1", "destinationrules", `{host: web, subsets: [{name: "a|b", labels: {version: v1}}]}`),
		"envoyfilters": head("EnvoyFilter", "v1alpha3", "envoyfilters", `{configPatches: [
  {applyTo: LISTENER, match: {listener: {name: 0.0.0.0_80}}, patch: {operation: MERGE, value: {per_connection_buffer_limit_bytes: 4096}}},
  {applyTo: HTTP_FILTER, match: {listener: {portNumber: 80, filterChain: {filter: {name: envoy.filters.network.http_connection_manager,
    subFilter: {name: envoy.filters.http.router}}}}}, patch: {operation: REMOVE}}]}`),
	}
}

// mended are the same objects put right.
const mended = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: virtualservices, namespace: shop}
spec: {hosts: [web], http: [{match: [{uri: {regex: "/a.*"}}], route: [{destination: {host: web}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: destinationrules, namespace: shop}
spec: {host: web, subsets: [{name: a, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: envoyfilters, namespace: shop}
spec: {configPatches: [{applyTo: LISTENER, match: {listener: {name: 0.0.0.0_80}}, patch: {operation: MERGE, value: {per_connection_buffer_limit_bytes: 8192}}}]}
`

// poisoned is one of these objects at the API server.
func (w *World) poisoned(resource string) (dynamic.ResourceInterface, *unstructured.Unstructured) {
	w.t.Helper()
	version := "v1"
	if resource == "envoyfilters" {
		version = "v1alpha3"
	}
	api := w.Clusters["east"].Dynamic().Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: version, Resource: resource}).Namespace("shop")
	o, err := api.Get(w.ctx, resource, metav1.GetOptions{})
	require.NoError(w.t, err)
	return api, o
}

// told is what the status of one of these objects says: reason, generation and
// message of our condition, and the types of all.
func (w *World) told(resource, typ string) (said string, types []string) {
	w.t.Helper()
	_, o := w.poisoned(resource)
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, x := range list {
		c := x.(map[string]any)
		types = append(types, c["type"].(string))
		if c["type"] == typ {
			require.Equal(w.t, "False", c["status"])
			said = fmt.Sprint(c["reason"], " ", c["observedGeneration"], " ", c["message"])
		}
	}
	return said, types
}

// TestPoisonIsTold is row 43: who wrote an object that is not served as written
// hears of it at the object, from one replica, until it is put right. Everything
// else is served, and what others have in the status stays.
func TestPoisonIsTold(t *testing.T) {
	w := NewWorld(t, "east")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2")+Service("web")+Pods("web", true, "10.1.0.1")+strings.Join(slices.Collect(maps.Values(poison(""))), ""))
	theirs := map[string]any{"type": "Reconciled", "status": "True", "message": "1/1 proxies up to date."}
	api, _ := w.poisoned("virtualservices")
	_, err := api.Patch(w.ctx, "virtualservices", types.MergePatchType, []byte(`{"status":{"conditions":[{"type":"Reconciled","status":"True","message":"1/1 proxies up to date."}]}}`),
		metav1.PatchOptions{FieldManager: "istiod"}, "status")
	require.NoError(t, err)
	first := w.Serve(func(s *serve.Settings) { s.PodName = "istiod-0" })
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1")
	for resource, says := range map[string][]string{
		"virtualservices":  {"Refused 1 ", "spec.http[0].match[0].uri.regex: "},
		"destinationrules": {"Refused 1 ", "spec.subsets[0].name: "},
		"envoyfilters":     {"PartsLeftOut 1 ", "spec.configPatches[1]: "},
	} {
		w.Eventually(resource+" is told", func() bool { said, _ := w.told(resource, status.ConditionType); return said != "" })
		said, _ := w.told(resource, status.ConditionType)
		require.True(t, strings.HasPrefix(said, says[0]), said)
		require.Contains(t, said, says[1])
	}
	_, o := w.poisoned("virtualservices")
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	require.Equal(t, theirs, list[0])

	// A second replica knows the same and writes nothing; neither does the first again.
	versions := func() (out []string) {
		for _, resource := range []string{"virtualservices", "destinationrules", "envoyfilters"} {
			_, o := w.poisoned(resource)
			out = append(out, o.GetResourceVersion())
		}
		return out
	}
	before, mark := versions(), len(p.Pushes())
	second := w.Serve(func(s *serve.Settings) { s.PodName = "istiod-1" })
	w.Connect(second, client("east", ""), recorder.Options{Delta: true})
	w.Eventually("the second replica knows all", func() bool { return len(w.problems("east")) == 3 })
	require.Equal(t, "istiod-0", w.holder(status.LeaseName("")))
	w.settle("east", "10.1.9.2", p)
	require.Equal(t, before, versions())
	onlyAbout(t, p, mark, Upstream("fence")) // what is written into a status is nothing to proxies

	// It takes over, and takes back what the first one said.
	first.Halt()
	w.Eventually("the second replica leads", func() bool { return w.holder(status.LeaseName("")) == "istiod-1" })
	w.Apply("east", mended)
	for resource := range poison("") {
		w.Eventually(resource+" is well", func() bool { said, _ := w.told(resource, status.ConditionType); return said == "" })
	}
	_, left := w.told("virtualservices", status.ConditionType)
	require.Equal(t, []string{"Reconciled"}, left)
	require.Empty(t, w.problems("east"))
}

// TestPoisonOfRevisions: each revision has a condition of its own, and objects of
// other revisions are left alone. Who is told not to writes nothing.
func TestPoisonOfRevisions(t *testing.T) {
	w := NewWorld(t, "east")
	objects := poison("")
	canary := poison(", labels: {istio.io/rev: canary}")
	w.Apply("east", objects["virtualservices"]+canary["destinationrules"])
	quiet := w.Serve(func(s *serve.Settings) { s.PodName, s.NoStatus = "quiet", true })
	w.Serve(func(s *serve.Settings) { s.PodName = "istiod-0" })
	w.Serve(func(s *serve.Settings) { s.PodName, s.Revision = "canary-0", "canary" })
	w.Eventually("both tell of what is nobody's", func() bool { _, list := w.told("virtualservices", ""); return len(list) == 2 })
	_, both := w.told("virtualservices", "")
	require.ElementsMatch(t, []string{status.ConditionType, "canary." + status.ConditionType}, both)
	w.Eventually("the canary tells of its own", func() bool { _, list := w.told("destinationrules", ""); return len(list) > 0 })
	_, own := w.told("destinationrules", "")
	require.Equal(t, []string{"canary." + status.ConditionType}, own)
	var known []registry.Problem
	w.Plane = quiet
	w.debug("problems", &known)
	require.Len(t, known, 2)
	require.NotEqual(t, "quiet", w.holder(status.LeaseName("")))
}

// holder is who holds a Lease of the control plane, "" if nobody does.
func (w *World) holder(lease string) string {
	w.t.Helper()
	l, err := w.Clusters["east"].Client().CoordinationV1().Leases(multicluster.SystemNamespace).Get(w.ctx, lease, metav1.GetOptions{})
	if err != nil || l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}
