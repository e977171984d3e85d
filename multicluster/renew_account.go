package multicluster

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func tokenRequest(seconds int64) *authenticationv1.TokenRequest {
	return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
}

// Waits after a renewal that failed.
const (
	renewRetry    = time.Minute
	renewRetryMax = 15 * time.Minute
)

// account notes how a renewal went, and tells of it.
func (r *Renewer) account(ctx context.Context, s *corev1.Secret, key string, token accountToken, err error) {
	if err != nil && ctx.Err() != nil {
		return // told to end
	}
	at := place{s.Name, key}
	r.mu.Lock()
	defer r.mu.Unlock()
	where := []zap.Field{zap.String("cluster", key), zap.String("secret", s.Namespace+"/"+s.Name)}
	if err == nil {
		// Where clocks differ by more than half a lifetime a new token is due at once.
		r.attempts[at] = attempted{next: r.now().Add(token.lifetime() / 10)}
		r.counted.WithLabelValues(key, "renewed").Inc()
		r.log.Info("renewed the token of a remote secret", append(where, zap.Time("until", token.expires))...)
		return
	}
	a := r.attempts[at]
	if apierrors.IsConflict(err) && a.failures == 0 {
		a.next = time.Time{} // somebody else wrote: look again next time
		r.attempts[at] = a
		r.log.Info("remote secret changed while its token was renewed, looking again", append(where, zap.Error(err))...)
		return
	}
	r.counted.WithLabelValues(key, "failed").Inc()
	a.failures++
	wait := min(renewRetry<<min(a.failures-1, 10), renewRetryMax)
	if left := token.expires.Sub(r.now()); left > 0 {
		wait = min(wait, max(left/4, renewLook)) // the nearer the end, the more often
	}
	a.next = r.now().Add(wait)
	a.problem = fmt.Sprintf("its token ends %s and could not be renewed: %s", token.expires.UTC().Format(time.RFC3339), bounded(err.Error()))
	if a.failures == 1 {
		r.log.Warn("token of a remote secret could not be renewed, trying again", append(where, zap.Time("ends", token.expires), zap.Error(err))...)
	}
	// Two Events at most: when it fails, and when the end comes near.
	reason := ReasonNotRenewed
	if !r.now().Before(token.lateAt()) {
		reason = ReasonTokenEnds
	}
	if r.cfg.Events != nil && a.told != reason {
		r.cfg.Events.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: s.Namespace, Name: s.Name, UID: s.UID},
			corev1.EventTypeWarning, reason, fmt.Sprintf("cluster %s: %s", key, a.problem))
	}
	a.told = reason
	r.attempts[at] = a
}

// tokenCollector exports how the tokens stand.
type tokenCollector struct{ r *Renewer }

func (c tokenCollector) descs() (ends, risk *prometheus.Desc) {
	labels := []string{"cluster", "secret"}
	return prometheus.NewDesc("isthmus_remote_token_expiry_timestamp_seconds", "When the token of a remote secret ends, in seconds since 1970.", labels, nil),
		prometheus.NewDesc("isthmus_remote_token_at_risk", "1 if the token of a remote secret ends and was not renewed in time, else 0.", labels, nil)
}

// Describe implements prometheus.Collector.
func (c tokenCollector) Describe(to chan<- *prometheus.Desc) {
	ends, risk := c.descs()
	to <- ends
	to <- risk
	c.r.counted.Describe(to)
}

// Collect implements prometheus.Collector.
func (c tokenCollector) Collect(to chan<- prometheus.Metric) {
	ends, risk := c.descs()
	for _, t := range c.r.Tokens() {
		at := 0.0
		if t.Problem != "" {
			at = 1
		}
		to <- prometheus.MustNewConstMetric(ends, prometheus.GaugeValue, float64(t.Expires.Unix()), string(t.Cluster), t.SecretName)
		to <- prometheus.MustNewConstMetric(risk, prometheus.GaugeValue, at, string(t.Cluster), t.SecretName)
	}
	c.r.counted.Collect(to)
}
