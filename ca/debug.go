package ca

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"time"
)

// Progress says where the CA and its rotation stand, for /debug/ca and the
// status command.
type Progress struct {
	// Phase in one word.
	Phase Phase `json:"phase"`
	RotationState
	// Ready: the authority can sign.
	Ready bool `json:"ready"`
	// Source in use, and what is wrong with it, "" if nothing.
	Source  string `json:"source"`
	Problem string `json:"problem,omitempty"`
	// Error of the last attempt to bring things in line, "" if it went well.
	Error string `json:"error,omitempty"`
	// Share of all proxies that hold the next root, and the share it takes.
	Share     Share   `json:"share"`
	Threshold float64 `json:"threshold"`
	// SwitchBy is when the signer is switched at the latest, zero if nothing is
	// being distributed or not every replica does so yet.
	SwitchBy time.Time `json:"switchBy,omitzero"`
	// Waits says for people what the next step of a rotation waits for, "" if
	// none is under way.
	Waits string `json:"waits,omitempty"`
	// Replicas as they reported last; only during a rotation.
	Replicas map[string]ReplicaReport `json:"replicas,omitempty"`
	// Issuer, Chain and Roots are the certificates in use.
	Issuer *certInfo  `json:"issuer,omitempty"`
	Chain  []certInfo `json:"chain,omitempty"`
	Roots  []certInfo `json:"roots,omitempty"`
}

func (k *Keeper) note(change func(*Progress)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.progress)
}

// Progress returns where the CA and its rotation stand.
func (k *Keeper) Progress() Progress {
	k.mu.Lock()
	p := k.progress
	p.Replicas = maps.Clone(p.Replicas)
	k.mu.Unlock()
	p.Phase, p.Threshold = p.RotationState.Phase(), k.cfg.Rotation.Threshold
	if p.Next != nil && !p.Distributed.IsZero() {
		p.SwitchBy = p.switchBy(k.cfg.Rotation)
	}
	p.Waits = p.waits(k.cfg.Rotation, k.now(), p.Share, p.Replicas)
	if st := k.cfg.Authority.state.Load(); st != nil {
		p.Ready = k.now().Before(st.notAfter)
		issuer := describe(st.signer.Cert)
		p.Issuer = &issuer
		for _, c := range st.signer.Chain {
			p.Chain = append(p.Chain, describe(c))
		}
		for _, c := range st.trust {
			p.Roots = append(p.Roots, describe(c))
		}
	}
	return p
}

// ServeHTTP answers /debug/ca with the progress in JSON. Nothing in it is
// secret, but who may see it is for the caller to decide.
func (k *Keeper) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	body, err := json.MarshalIndent(k.Progress(), "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
}

func equalJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
