package multicluster

import (
	"encoding/json"
	"net/http"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// clusterz is one element of istiod's /debug/clusterz.
type clusterz struct {
	ID         mesh.ClusterID `json:"id"`
	SecretName string         `json:"secretName"`
	SyncStatus SyncStatus     `json:"syncStatus"`
}

// ServeClusterz answers as istiod's /debug/clusterz does, which istioctl reads:
// the local cluster first, with an empty secretName.
func (m *Manager) ServeClusterz(w http.ResponseWriter, _ *http.Request) {
	out := []clusterz{}
	for _, s := range m.Clusters() {
		out = append(out, clusterz{s.ID, s.SecretName, s.SyncStatus})
	}
	writeJSON(w, out)
}

// Debug is what /debug/clusters shows.
type Debug struct {
	// Ready and Listed: see [Manager.Ready]; the kubeconfigs were listed once.
	Ready  bool `json:"ready"`
	Listed bool `json:"listed"`
	// Error says why the kubeconfigs cannot be read at the moment.
	Error    string         `json:"error,omitempty"`
	Clusters []DebugCluster `json:"clusters"`
	// Refused are the kubeconfigs that are not used.
	Refused []DebugRefusal `json:"refused"`
}

// DebugCluster is a cluster's status with its staleness in seconds.
type DebugCluster struct {
	Status
	StaleSeconds float64 `json:"staleSeconds"`
}

// DebugRefusal is a kubeconfig that is not used.
type DebugRefusal struct {
	ID         mesh.ClusterID `json:"id"`
	SecretName string         `json:"secretName"`
	Key        string         `json:"key,omitempty"`
	Reason     string         `json:"reason"`
	Message    string         `json:"message"`
}

// Debug is the refusal as people see it.
func (r Refusal) Debug() DebugRefusal {
	return DebugRefusal{r.ID, r.Origin.String(), r.Origin.Key, r.Reason, r.Message}
}

// Debug returns everything the manager knows, for people.
func (m *Manager) Debug() Debug {
	v := m.view.Load()
	out := Debug{Ready: m.HasSynced(), Listed: v.listed, Error: v.feedFail, Clusters: []DebugCluster{}, Refused: []DebugRefusal{}}
	for _, s := range m.Clusters() {
		out.Clusters = append(out.Clusters, DebugCluster{s, s.StaleFor.Seconds()})
	}
	for _, r := range v.refusals {
		out.Refused = append(out.Refused, r.Debug())
	}
	return out
}

// ServeClusters answers with [Debug] as JSON.
func (m *Manager) ServeClusters(w http.ResponseWriter, _ *http.Request) { writeJSON(w, m.Debug()) }

func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // a client that left is nobody's problem
}
