package serve

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// podTimeout bounds a look at pods.
const podTimeout = 5 * time.Second

// podLookup answers the CSR service's questions about pods by asking their API
// server: the catalog does not hold UIDs, and only trusted node proxies cause
// the questions. What cannot be read counts as not there.
type podLookup struct{ clients authn.Clients }

// Pod implements [ca.PodLookup].
func (l podLookup) Pod(cluster mesh.ClusterID, namespace, name string) (ca.PodFacts, bool) {
	client, ok := l.clients(cluster)
	if !ok {
		return ca.PodFacts{}, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), podTimeout)
	defer cancel()
	p, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return ca.PodFacts{}, false
	}
	return ca.PodFacts{UID: string(p.UID), Node: p.Spec.NodeName, ServiceAccount: p.Spec.ServiceAccountName, Live: live(p)}, true
}

// RunsOnNode implements [ca.PodLookup].
func (l podLookup) RunsOnNode(cluster mesh.ClusterID, node, namespace, serviceAccount string) bool {
	client, ok := l.clients(cluster)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), podTimeout)
	defer cancel()
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"spec.nodeName": node, "spec.serviceAccountName": serviceAccount}.String()})
	if err != nil {
		return false
	}
	for i := range list.Items {
		p := &list.Items[i]
		if live(p) && p.Spec.NodeName == node && p.Spec.ServiceAccountName == serviceAccount {
			return true
		}
	}
	return false
}

// live: not finished and not being deleted.
func live(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}
