package ca

import (
	"fmt"
	"math"
	"time"
)

// waits says for people what the next step of a rotation waits for, "" if none
// is under way. It reads what [RotationState.Step] decides by, and decides
// nothing. all is the share over all replicas.
func (s RotationState) waits(set RotationSettings, now time.Time, all Share, reports map[string]ReplicaReport) string {
	switch s.Phase() {
	case PhaseDistributing:
		return s.waitsToSwitch(set, now, all, reports)
	case PhaseRetiring:
		r := s.Retiring[0]
		if r.Until.IsZero() {
			return s.waitsForReplicas("sign with the new issuer", reports)
		}
		return fmt.Sprintf("the last certificate under the old root ends by %s", clockText(earlier(r.Until, r.IssuerEnd)))
	}
	return ""
}

func (s RotationState) waitsToSwitch(set RotationSettings, now time.Time, all Share, reports map[string]ReplicaReport) string {
	switch {
	case now.Before(s.Next.NotBefore):
		return fmt.Sprintf("the next issuer is not valid before %s", clockText(s.Next.NotBefore))
	case !now.Before(s.Next.NotAfter):
		return fmt.Sprintf("the next issuer ended at %s: replace it", clockText(s.Next.NotAfter))
	case s.Distributed.IsZero():
		return s.waitsForReplicas("hand out both roots", reports)
	case now.Before(s.Distributed.Add(set.MinDistribution)):
		return fmt.Sprintf("both roots are handed out until %s at least", clockText(s.Distributed.Add(set.MinDistribution)))
	case !all.Known:
		return fmt.Sprintf("how many proxies hold the new root is not known yet; the signer switches by %s at the latest", clockText(s.switchBy(set)))
	case !all.sufficient(set.Threshold):
		need := int(math.Ceil(set.Threshold * float64(all.Total)))
		return fmt.Sprintf("%d more of %d proxies must hold the new root; the signer switches by %s at the latest",
			need-all.Held, all.Total, clockText(s.switchBy(set)))
	}
	return "the next look of a replica"
}

// switchBy is when the signer is switched at the latest.
func (s RotationState) switchBy(set RotationSettings) time.Time {
	return earlier(s.Distributed.Add(set.MaxLifetime+set.Margin), s.Current.NotAfter.Add(-set.DefaultLifetime))
}

func (s RotationState) waitsForReplicas(what string, reports map[string]ReplicaReport) string {
	so := 0
	for _, r := range reports {
		if r.Generation == s.generation() {
			so++
		}
	}
	return fmt.Sprintf("%d of %d replicas %s, all must", so, len(reports), what)
}

func clockText(t time.Time) string { return t.UTC().Format(time.RFC3339) }
