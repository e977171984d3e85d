package multicluster

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// The state machine of one cluster. It has at most two source instances:
//
//	candidate  reads the cluster and has not reported yet
//	serving    has reported: what the mesh knows of the cluster is from it
//
// A candidate that reports becomes the serving one and the old one ends. A
// serving instance that ended by itself keeps its place, and its data, until
// another one reports.

// instanceState is what the state machine sees of a source instance.
type instanceState struct {
	generation uint64
	content    string
	// synced: it has reported everything once.
	synced bool
	// exited: its Run returned.
	exited bool
}

// clusterState is what the state machine sees of one cluster.
type clusterState struct {
	// target is the last usable claim; zero if there never was one. It outlives
	// an unusable one, so that a typing mistake does not keep a source that ended
	// from being started again.
	target             claim
	serving, candidate *instanceState
	// failed is the content whose last attempt ended early. It is not tried again
	// before retryAt; any other content is.
	failed  string
	retryAt time.Time
}

// verb is what is to be done.
type verb uint8

const (
	// verbStart starts a candidate for the claim.
	verbStart verb = iota
	// verbPromote makes the candidate the serving instance and ends the old one.
	verbPromote
	// verbAbandon ends the candidate.
	verbAbandon
	// verbDrop ends everything and removes the cluster from the mesh.
	verbDrop
)

func (v verb) String() string { return [...]string{"start", "promote", "abandon", "drop"}[v] }

// action is one step for one cluster. Actions of one cluster are in order.
type action struct {
	verb verb
	id   mesh.ClusterID
	// generation of the candidate that promote and abandon mean.
	generation uint64
	// claim to start.
	claim claim
}

// plan compares what the claims ask for with what runs. It depends on its
// arguments alone and asks for nothing that is already so; carrying its
// actions out and planning again gives none, as long as nothing else happens.
// next is when something becomes due by itself, zero if nothing does.
func plan(owners map[mesh.ClusterID]claim, running map[mesh.ClusterID]clusterState, now time.Time) (actions []action, next time.Time) {
	ids := slices.Collect(maps.Keys(running))
	for id := range owners {
		if _, ok := running[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, cmp.Compare)
	for _, id := range ids {
		owner, wanted := owners[id]
		state, runs := running[id]
		if !wanted {
			if runs {
				actions = append(actions, action{verb: verbDrop, id: id})
			}
			continue
		}
		steps, due := planCluster(owner, state, now)
		actions = append(actions, steps...)
		next = earlier(next, due)
	}
	return actions, next
}

// planCluster plans for a cluster that somebody claims.
func planCluster(owner claim, s clusterState, now time.Time) (actions []action, next time.Time) {
	do := func(v verb, i *instanceState) {
		actions = append(actions, action{verb: v, id: owner.id, generation: i.generation})
	}
	if s.candidate != nil && s.candidate.synced {
		do(verbPromote, s.candidate)
		s.serving, s.candidate = s.candidate, nil
	}
	if s.candidate != nil && s.candidate.exited {
		do(verbAbandon, s.candidate)
		s.candidate = nil
	}
	target := s.target
	if owner.problem == "" {
		target = owner
	}
	if target.content == "" {
		return actions, time.Time{} // nothing usable was ever offered
	}
	if s.serving != nil && !s.serving.exited && s.serving.content == target.content {
		if s.candidate != nil { // a rotation that was taken back
			do(verbAbandon, s.candidate)
		}
		return actions, time.Time{}
	}
	if s.candidate != nil {
		if s.candidate.content == target.content {
			return actions, time.Time{} // on its way
		}
		do(verbAbandon, s.candidate)
	}
	if s.failed == target.content && now.Before(s.retryAt) {
		return actions, s.retryAt
	}
	return append(actions, action{verb: verbStart, id: owner.id, claim: target}), time.Time{}
}

// earlier returns the earlier of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
