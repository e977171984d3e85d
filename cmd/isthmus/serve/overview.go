package serve

import (
	"net/http"
	"time"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds"
)

// Overview is everything that the page and isthmus status show.
type Overview struct {
	Build Build     `json:"build"`
	Pod   string    `json:"pod"`
	At    time.Time `json:"at"`
	// NotReady says why proxies are not answered yet, "" if they are.
	NotReady string                      `json:"notReady,omitempty"`
	Primary  mesh.ClusterID              `json:"primary"`
	Clusters []multicluster.DebugCluster `json:"clusters"`
	// Refused are the kubeconfigs that are not used, also those that name no cluster.
	Refused  []multicluster.DebugRefusal `json:"refused,omitempty"`
	Registry registry.Overview           `json:"registry"`
	Proxies  []xds.ProxyStatus           `json:"proxies"`
	// Tokens are the tokens of remote secrets that end, and what is wrong with them.
	Tokens []multicluster.Token `json:"tokens,omitempty"`
	// CA is where the CA and a rotation of its root stand, nil if none runs.
	CA *ca.Progress `json:"ca,omitempty"`
}

// Overview reads the state of everything.
func (c *Control) Overview() Overview {
	o := Overview{Build: c.build, Pod: c.settings.PodName, At: time.Now(), NotReady: c.notReady(), Primary: c.settings.primary(),
		Registry: registry.NewDebug(c.store, c.problems).Overview(), Proxies: c.xds.Proxies(), Tokens: c.tokens(), CA: c.trust.progress()}
	for _, s := range c.world.clusters() {
		o.Clusters = append(o.Clusters, multicluster.DebugCluster{Status: s, StaleSeconds: s.StaleFor.Seconds()})
	}
	for _, r := range c.world.refusals() {
		o.Refused = append(o.Refused, r.Debug())
	}
	return o
}

// weightOf is the weight of a cluster that is in force.
func (c *Control) weightOf(id mesh.ClusterID) mesh.Weight {
	return c.store.Catalog().Settings.Weights.Cluster(id)
}

// clusterViews are the cluster views of a world that has no manager.
func clusterViews(clusters func() []multicluster.Status) []namedHandler {
	type row struct {
		ID         mesh.ClusterID          `json:"id"`
		SecretName string                  `json:"secretName"`
		SyncStatus multicluster.SyncStatus `json:"syncStatus"`
	}
	return []namedHandler{
		{name: "clusterz", help: "clusters and their sync state, as istioctl reads it", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rows := []row{}
			for _, s := range clusters() {
				rows = append(rows, row{s.ID, s.SecretName, s.SyncStatus})
			}
			writeJSON(w, r, rows)
		})},
		{name: "clusters", help: "clusters with health and age", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			writeJSON(w, r, map[string]any{"clusters": clusters()})
		})},
	}
}
