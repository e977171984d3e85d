package scenario

import (
	"bytes"
	"fmt"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

// weigh annotates a cluster's remote secret, or takes the annotation away.
func (w *World) weigh(cluster string, percent ...uint32) {
	w.t.Helper()
	var p *uint32
	if len(percent) > 0 {
		p = &percent[0]
	}
	_, err := multicluster.WriteWeight(w.ctx, w.Clusters[w.names[0]].Client(), multicluster.SystemNamespace, mesh.ClusterID(cluster), p, false)
	require.NoError(w.t, err)
}

// annotateSecret gives a cluster's remote secret any text as its weight.
func (w *World) annotateSecret(cluster, text string) {
	w.t.Helper()
	_, err := w.Clusters[w.names[0]].Client().CoreV1().Secrets(multicluster.SystemNamespace).Patch(w.ctx, multicluster.SecretPrefix+cluster,
		types.MergePatchType, fmt.Appendf(nil, `{"metadata": {"annotations": {%q: %q}}}`, multicluster.WeightAnnotation, text), metav1.PatchOptions{})
	require.NoError(w.t, err)
}

// definitions counts what was built that is no assignment.
func (w *World) definitions() (built []string) {
	w.t.Helper()
	for _, kind := range []string{"cds", "lds", "rds", "ecds", "nds"} {
		built = append(built, w.Plane.Metric(`isthmus_xds_builds_total{type="`+kind+`"}`))
	}
	return built
}

// A drain by annotation is heard as other addresses to dial. Nothing else is
// built or sent, and nobody reads the cluster again.
func TestDrainByAnnotation(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2", "10.1.9.3")+Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1")+Service("alone")+Pods("alone", true, "10.2.0.9"))
	w.Join("west")
	w.Serve()
	delta, sotw := w.Proxy("east", "", true), w.Proxy("east", "", false)
	both := []*recorder.Proxy{delta, sotw}
	hear := func(want ...string) {
		t.Helper()
		for _, p := range both {
			w.Hears(p, Upstream("web"), want...)
		}
	}
	hear("10.1.0.1:8080 1", "10.2.0.1:8080 1")
	before, built, status := marks(both...), w.definitions(), w.Plane.Status("west")
	require.NotEmpty(t, built[0], "upstreams were built, and that was counted")

	w.weigh("west", 0)
	hear("10.1.0.1:8080 1")
	w.settle("east", "10.1.9.2", both...)
	from := "annotation isthmus.io/weight of secret istio-system/istio-remote-secret-west"
	require.Equal(t, &mesh.Weight{Percent: 0, From: from}, w.Plane.Status("west").Weight)
	var page multicluster.Debug
	w.debug("clusters", &page)
	require.Equal(t, &mesh.Weight{Percent: 0, From: from}, page.Clusters[1].Weight)
	require.Equal(t, "0", w.Plane.Metric(`isthmus_cluster_weight_percent{cluster="west"}`))
	var x struct {
		Candidates []struct{ Address, Reason string }
		Notes      []string
	}
	w.debug("explain?proxy=client-0.shop&host=web.shop.svc.cluster.local&port=80", &x)
	require.Equal(t, "cluster west is drained: weight 0 by "+from, x.Candidates[1].Reason)
	require.Equal(t, []string{"10.2.0.9:8080 1"}, delta.Endpoints(Upstream("alone")), "nobody else could answer")

	// A value that cannot be read leaves the drain as it is, and is named.
	w.annotateSecret("west", "half")
	w.awaitEvent(multicluster.SecretPrefix+"west", `"half" is not a percentage`)
	require.Contains(t, w.problems("east"), "Secret "+multicluster.SecretPrefix+"west")

	// The last that is ready elsewhere goes: the drain is not heeded, and then is again.
	w.Apply("east", Slice("web"))
	hear("10.2.0.1:8080 1")
	w.Apply("east", Slice("web", "10.1.0.1"))
	hear("10.1.0.1:8080 1")

	w.weigh("west")
	hear("10.1.0.1:8080 1", "10.2.0.1:8080 1")
	w.settle("east", "10.1.9.3", both...)
	require.Nil(t, w.Plane.Status("west").Weight)
	require.Empty(t, w.problems("east"))
	for i, p := range both {
		onlyAbout(t, p, before[i], Upstream("web"), Upstream("fence"))
	}
	require.Equal(t, built, w.definitions(), "nothing but assignments was built")
	require.Equal(t, status.Generation, w.Plane.Status("west").Generation, "the cluster was not read again")
	require.Equal(t, status.SyncedAt, w.Plane.Status("west").SyncedAt)

	w.weigh("west", 25)
	hear("10.1.0.1:8080 100", "10.2.0.1:8080 25")
}

// A replica that starts meets the annotation before it reads the cluster.
func TestReplicaStartsDrained(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.weigh("west", 0)
	w.Serve()
	proxy := w.Proxy("east", "", true)
	require.Equal(t, []string{"10.1.0.1:8080 1"}, proxy.Endpoints(Upstream("web")))
}

// The command writes the annotation, waits until the control plane goes by it,
// and says what a drain does not move.
func TestDrainCommand(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1")+Service("alone")+Pods("alone", true, "10.2.0.9"))
	w.Join("west")
	w.Serve()
	w.Plane.AwaitHealth("west", multicluster.HealthOK)
	binary, kubeconfig := buildIsthmus(t), writeFile(t, t.TempDir(), "kubeconfig", w.Clusters["east"].Kubeconfig())
	run := func(at string, args ...string) (out, complaint string, err error) {
		t.Helper()
		cmd := exec.CommandContext(w.ctx, binary, append(args, "--kubeconfig", kubeconfig, "--address", at)...)
		var o, e bytes.Buffer
		cmd.Stdout, cmd.Stderr = &o, &e
		err = cmd.Run()
		return o.String(), e.String(), err
	}
	address := w.Plane.HTTPAddr()

	out, _, err := run(address, "drain", "west", "--dry-run")
	require.NoError(t, err)
	require.Contains(t, out, "would change from none to 0\nNothing was changed")
	require.Nil(t, w.Plane.Status("west").Weight)

	out, complaint, err := run(address, "drain", "west")
	require.NoError(t, err, complaint)
	require.Contains(t, out, "Secret istio-system/istio-remote-secret-west in cluster ")
	require.Contains(t, out, "annotation isthmus.io/weight changed from none to 0")
	require.Contains(t, out, "Cluster west before: gets all of its share\n"+
		"Cluster west after:  is drained: gets 0 % of its share: annotation isthmus.io/weight of secret istio-system/istio-remote-secret-west\n")
	require.Contains(t, out, "1 service has ready endpoints in drained clusters alone, so west still serves: alone.shop.svc.cluster.local")
	require.EqualValues(t, 0, w.Plane.Status("west").Weight.Percent, "the command ends when it is so")
	require.Empty(t, complaint)

	out, _, err = run(address, "drain", "west", "--weight", "30")
	require.NoError(t, err)
	require.Contains(t, out, "changed from 0 to 30")
	require.Contains(t, out, "after:  gets 30 % of its share")

	// Nobody to ask: written all the same, and said.
	out, complaint, err = run("127.0.0.1:1", "undrain", "west")
	require.NoError(t, err)
	require.Contains(t, out, "changed from 30 to none")
	require.Contains(t, complaint, "warning: no control plane has confirmed it: reach control plane at http://127.0.0.1:1")
	w.Eventually("the weight is gone", func() bool { return w.Plane.Status("west").Weight == nil })
	out, _, err = run(address, "undrain", "west")
	require.NoError(t, err)
	require.Contains(t, out, "annotation isthmus.io/weight stays none\nCluster west before: gets all of its share\nCluster west after:  gets all of its share\n")

	_, complaint, err = run(address, "drain", "east")
	require.Error(t, err)
	require.Contains(t, complaint, "it is the primary, which has no remote secret; set weights.clusters.east in key isthmus of ConfigMap istio")
	_, complaint, err = run(address, "drain", "nowhere")
	require.Error(t, err)
	require.Contains(t, complaint, "no secret with label istio/multiCluster=true has a key nowhere")
}
