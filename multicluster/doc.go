// Package multicluster decides whom the control plane may ask: it turns
// kubeconfigs, from labelled Secrets of the system namespace or from the files
// of a directory, into one running registry source per Kubernetes cluster.
//
// It owns the reading of kubeconfigs that others wrote ([Sanitize]), the dial
// filter that every connection made with them passes, the state machine that
// decides which kubeconfig runs for which cluster (plan.go), the lifecycle of
// the sources ([Manager]) and the health of every cluster ([Manager.Clusters]).
// It makes such Secrets too ([CreateRemoteSecret]).
//
// It does not know what a source reads from a cluster, nor what becomes of it:
// both come in as functions ([Config]). The primary is not managed here, it is
// only told of.
//
// Three rules hold throughout. What is known of a cluster leaves with the last
// kubeconfig that names it and for no other reason. A new kubeconfig replaces
// an old one only when a source that uses it has read the cluster completely.
// Every decision follows from the set of kubeconfigs as it is now, so replicas
// that see the same set decide the same.
package multicluster
