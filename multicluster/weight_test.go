package multicluster

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

func TestParseWeight(t *testing.T) {
	for text, want := range map[string]uint32{"0": 0, "100": 100, " 25 ": 25, "007": 7} {
		got, err := ParseWeight(text)
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, got)
	}
	for _, text := range []string{"", "101", "-1", "50%", "half", "1.5", "0x10", "99999999999999999999", "5\n0"} {
		_, err := ParseWeight(text)
		require.ErrorContains(t, err, "is not a percentage: write a whole number from 0 to 100", "%q", text)
	}
}

// weighed is a Secret with the annotation.
func weighed(o object, text string) object {
	o.weight, o.version = annotation{text, true}, o.version+" weight "+text
	return o
}

// weightWorld is a world whose weights reach the Store.
func weightWorld(t *testing.T) (*world, *registry.Problems) {
	problems := registry.NewProblems(nil)
	var w *world
	w = newWorld(t, func(c *Config) {
		c.Problems = problems
		c.SetWeights = func(to map[mesh.ClusterID]mesh.Weight) { w.store.SetSecretWeights(to) }
		c.WeightOf = func(id mesh.ClusterID) mesh.Weight { return w.store.Catalog().Settings.Weights.Cluster(id) }
	})
	return w, problems
}

// A changed weight is one change of weights and nothing else: no source is
// started, no endpoint is touched.
func TestWeightIsNoRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, problems := weightWorld(t)
		defer w.stop()
		a := secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")})
		w.set(a)
		w.newest("c2").sync(2)
		before := w.status("c2")
		require.Nil(t, before.Weight)
		w.forget()

		w.set(weighed(a, "25"))
		require.Len(t, w.changes, 1)
		require.Equal(t, registry.ScopeWeights, w.changes[0].Scope)
		require.Empty(t, w.changes[0].Services)
		require.Len(t, w.all("c2"), 1, "the source goes on")
		s := w.status("c2")
		require.Equal(t, &mesh.Weight{Percent: 25, From: "annotation isthmus.io/weight of secret istio-system/a"}, s.Weight)
		require.Equal(t, before.Generation, s.Generation)
		require.InDelta(t, 25, series(t, w.metrics)[`isthmus_cluster_weight_percent{cluster="c2"}`], 0)

		w.set(weighed(a, " 25")) // written otherwise
		time.Sleep(time.Hour)    // and looked at again and again
		synctest.Wait()
		require.Len(t, w.changes, 1)

		w.set(a)
		require.Len(t, w.changes, 2)
		require.Nil(t, w.status("c2").Weight)
		require.Len(t, w.all("c2"), 1)
		require.Empty(t, problems.List())
	})
}

func TestWeightThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, problems := weightWorld(t)
		defer w.stop()
		a := secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1"), "c3": goodKubeconfig("1")})
		w.set(weighed(a, "0"))
		w.newest("c2").sync(2)
		w.forget()
		for i, bad := range []string{"none", ""} {
			w.set(weighed(a, bad))
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Empty(t, w.changes, "the last good weight stays")
			require.EqualValues(t, 0, w.status("c2").Weight.Percent)
			list := problems.List()
			require.Len(t, list, 1)
			require.Equal(t, "Secret istio-system/a in cluster primary", list[0].Object.String())
			require.Equal(t, "metadata.annotations[isthmus.io/weight]", list[0].Field)
			require.Contains(t, list[0].Message, fmt.Sprintf("%q is not a percentage: write a whole number from 0 to 100; the last good weight stays", bad))
			require.Len(t, w.events.list, i+1, "said once, and not for each cluster of the secret")
			require.Equal(t, ReasonWeight, w.events.list[i].reason)
		}
		w.set(weighed(a, "10"))
		require.Empty(t, problems.List())
		require.EqualValues(t, 10, w.status("c2").Weight.Percent)
		w.set(weighed(a, "no"))
		w.set()
		require.Empty(t, problems.List(), "the problem leaves with the secret")
		w.set(weighed(a, "no"))
		require.Nil(t, w.status("c2").Weight, "what it was before it left is forgotten")
		require.Len(t, problems.List(), 1)
	})
}

// The weight is in force before a cluster is read, and as long as it has
// endpoints: no request goes to a drained cluster that comes or leaves.
func TestWeightFromFirstToLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := weightWorld(t)
		defer w.stop()
		w.set(weighed(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}), "0"))
		require.Len(t, w.changes, 1)
		require.Equal(t, registry.ScopeWeights, w.changes[0].Scope)
		w.newest("c2").sync(2)
		w.forget()
		w.set()
		require.Len(t, w.changes, 2)
		require.Contains(t, w.changes[0].Services, serviceKey, "the endpoints leave first")
		require.Equal(t, registry.ScopeWeights, w.changes[1].Scope)
		require.Empty(t, w.store.Catalog().Settings.Weights.Secrets)
	})
}

// Only the secret that counts is asked.
func TestWeightOfTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, problems := weightWorld(t)
		defer w.stop()
		a := secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")})
		b := weighed(secretObject("b", 2, map[string]string{"c2": goodKubeconfig("1")}), "0")
		bad := weighed(secretObject("c", 3, map[string]string{"c2": goodKubeconfig("1"), "primary": goodKubeconfig("1")}), "all")
		w.set(a, b, bad)
		w.newest("c2").sync(1)
		require.Nil(t, w.status("c2").Weight)
		require.Empty(t, problems.List(), "a secret that is not used has no say")
		w.set(b, bad)
		require.EqualValues(t, 0, w.status("c2").Weight.Percent)
		require.Contains(t, w.status("c2").Weight.From, "istio-system/b")
		require.Len(t, w.all("c2"), 1)
	})
}

// What a feed that fails said last stays.
func TestWeightThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := weightWorld(t)
		defer w.stop()
		w.set(weighed(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}), "0"))
		w.newest("c2").sync(1)
		w.feed.failures <- "no route to host"
		time.Sleep(time.Hour)
		synctest.Wait()
		require.EqualValues(t, 0, w.status("c2").Weight.Percent)
	})
}

func TestWeightIsReadOfSecrets(t *testing.T) {
	s := remoteSecret("istio-system", "a", "1", nil, map[string]string{"c2": "x"})
	require.False(t, readSecret(s).weight.set)
	s.Annotations = map[string]string{WeightAnnotation: ""}
	require.Equal(t, annotation{"", true}, readSecret(s).weight)
}

func TestWriteWeight(t *testing.T) {
	label := map[string]string{SecretLabel: "true"}
	at := func(s *corev1.Secret, second int64) *corev1.Secret {
		s.CreationTimestamp = metav1.Unix(second, 0)
		return s
	}
	client := fake.NewClientset(
		at(remoteSecret("istio-system", "younger", "1", label, map[string]string{"c2": "x"}), 2),
		at(remoteSecret("istio-system", "older", "1", label, map[string]string{"c2": "y"}), 1),
		at(remoteSecret("istio-system", "both", "1", label, map[string]string{"c3": "y", "c4": "y"}), 1),
		remoteSecret("istio-system", "unlabelled", "1", nil, map[string]string{"c5": "y"}))
	read := func(name string) (string, bool) {
		s, err := client.CoreV1().Secrets("istio-system").Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		text, ok := s.Annotations[WeightAnnotation]
		return text, ok
	}
	zero, half := uint32(0), uint32(50)
	for _, c := range []struct {
		percent *uint32
		want    WeightChange
	}{
		{nil, WeightChange{"istio-system/older", "", ""}},
		{&zero, WeightChange{"istio-system/older", "", "0"}},
		{&zero, WeightChange{"istio-system/older", "0", "0"}},
		{&half, WeightChange{"istio-system/older", "0", "50"}},
		{nil, WeightChange{"istio-system/older", "50", ""}},
	} {
		got, err := WriteWeight(t.Context(), client, "istio-system", "c2", c.percent, false)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
		text, set := read("older")
		require.Equal(t, c.want.After, text)
		require.Equal(t, c.percent != nil, set)
	}
	_, set := read("younger")
	require.False(t, set, "the secret that counts is annotated, no other")

	_, err := WriteWeight(t.Context(), client, "istio-system", "c3", &zero, false)
	require.ErrorContains(t, err, "secret istio-system/both is that of several clusters (c3, c4)")
	require.ErrorContains(t, err, "weights.clusters.c3 in key isthmus of ConfigMap istio")
	_, err = WriteWeight(t.Context(), client, "istio-system", "c5", &zero, false)
	require.ErrorContains(t, err, "no secret with label istio/multiCluster=true has a key c5")
}
