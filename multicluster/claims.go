package multicluster

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Origin is where a kubeconfig comes from: a Secret, or a file.
type Origin struct {
	// Namespace is that of the Secret, "" for a file.
	Namespace string
	// Name is the name of the Secret or the path of the file.
	Name string
	// UID and Created are those of the Secret.
	UID     string
	Created time.Time
	// Key is the data key within the Secret, "" for a file.
	Key string
}

// String renders "namespace/name" of a Secret or the path of a file.
func (o Origin) String() string {
	if o.Namespace == "" {
		return o.Name
	}
	return o.Namespace + "/" + o.Name
}

// describe names the exact place in words.
func (o Origin) describe() string {
	if o.Namespace == "" {
		return "file " + o.Name
	}
	return "secret " + o.String() + " key " + o.Key
}

// compare orders by precedence: who is older wins, then whose name is first.
// Files have no age, so names decide between them.
func (o Origin) compare(p Origin) int {
	return cmp.Or(o.Created.Compare(p.Created), cmp.Compare(o.Namespace, p.Namespace), cmp.Compare(o.Name, p.Name),
		cmp.Compare(o.UID, p.UID), cmp.Compare(o.Key, p.Key))
}

// claim is one kubeconfig that is offered for a cluster.
type claim struct {
	id     mesh.ClusterID
	origin Origin
	// content identifies the kubeconfig: a hash of its bytes.
	content string
	// problem says why it cannot be used, "" if it can.
	problem string
	// weight is that of the Secret. It has no part in who owns a cluster.
	weight annotation
}

func compareClaims(a, b claim) int {
	return cmp.Or(a.origin.compare(b.origin), cmp.Compare(a.id, b.id), cmp.Compare(a.content, b.content), cmp.Compare(a.problem, b.problem))
}

// Reasons of refusals, as they stand in Events.
const (
	ReasonDuplicate  = "DuplicateCluster"
	ReasonPrimary    = "PrimaryCluster"
	ReasonKubeconfig = "InvalidKubeconfig"
	ReasonID         = "InvalidClusterID"
)

// Refusal is a kubeconfig that is not used, and why.
type Refusal struct {
	ID     mesh.ClusterID
	Origin Origin
	// Reason is one of the Reason constants.
	Reason string
	// Message names the object, the field and the remedy.
	Message string
}

// decision is what a set of claims asks for.
type decision struct {
	// owners holds for every cluster the claim that counts. It may be unusable.
	owners map[mesh.ClusterID]claim
	// refusals are ordered by origin.
	refusals []Refusal
}

// decide gives every cluster one owner. It looks at nothing but the claims, in
// any order, and at the names of the primary, so all replicas decide the same.
// The owner is the oldest claim even if it is unusable: otherwise a typing
// mistake would hand a cluster to somebody else.
func decide(claims []claim, primary ...mesh.ClusterID) decision {
	d := decision{owners: map[mesh.ClusterID]claim{}}
	for _, c := range slices.SortedFunc(slices.Values(claims), compareClaims) {
		switch owner, taken := d.owners[c.id]; {
		case c.id == "" && c.problem != "": // a file too broken to say which cluster it is for
			d.refuse(c, ReasonKubeconfig, c.problem)
		case invalidID(c.id) != "":
			d.refuse(c, ReasonID, invalidID(c.id))
		case slices.Contains(primary, c.id):
			d.refuse(c, ReasonPrimary, fmt.Sprintf("cluster %q is the primary, which needs no kubeconfig; name the remote cluster differently", c.id))
		case taken:
			d.refuse(c, ReasonDuplicate, fmt.Sprintf("cluster %q is already claimed by %s, which has precedence; delete one of the two or rename this one",
				c.id, owner.origin.describe()))
		default:
			d.owners[c.id] = c
			if c.problem != "" {
				d.refuse(c, ReasonKubeconfig, c.problem)
			}
		}
	}
	return d
}

func (d *decision) refuse(c claim, reason, why string) {
	d.refusals = append(d.refusals, Refusal{ID: c.id, Origin: c.origin, Reason: reason,
		Message: c.origin.describe() + ": " + why})
}

// maxClusterID is the length limit of a data key of a Secret.
const maxClusterID = 253

func invalidID(id mesh.ClusterID) string {
	switch {
	case id == "":
		return "it names no cluster"
	case len(id) > maxClusterID:
		return fmt.Sprintf("the cluster's name is longer than %d characters", maxClusterID)
	case slices.ContainsFunc([]rune(id), notPrintable):
		return fmt.Sprintf("the cluster's name %q holds white space or control characters", id)
	}
	return ""
}
