package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// runEvents writes the Events of this replica.
func (k *kubeWorld) runEvents(ctx context.Context) error {
	sink := sharedEvents{&typedcorev1.EventSinkImpl{Interface: k.client.CoreV1().Events("")}}
	k.events.StartRecordingToSink(&allowedEvents{EventSink: sink, log: k.log, now: time.Now})
	<-ctx.Done()
	k.events.Shutdown()
	return nil
}

// eventsDenied is how long no Event is tried after one was not allowed.
const eventsDenied = 10 * time.Minute

// allowedEvents writes Events while that is allowed. Istio's roles do not allow
// it. What an Event says is in the log as well, so that is told once, and the API
// server is not asked with every Event. The recorder calls it from one goroutine.
type allowedEvents struct {
	record.EventSink
	log   *zap.Logger
	now   func() time.Time
	told  bool
	until time.Time // no Event before
}

// Create implements [record.EventSink].
func (a *allowedEvents) Create(e *corev1.Event) (*corev1.Event, error) {
	return a.write(e, func() (*corev1.Event, error) { return a.EventSink.Create(e) })
}

// Update implements [record.EventSink].
func (a *allowedEvents) Update(e *corev1.Event) (*corev1.Event, error) {
	return a.write(e, func() (*corev1.Event, error) { return a.EventSink.Update(e) })
}

// Patch implements [record.EventSink].
func (a *allowedEvents) Patch(e *corev1.Event, data []byte) (*corev1.Event, error) {
	return a.write(e, func() (*corev1.Event, error) { return a.EventSink.Patch(e, data) })
}

func (a *allowedEvents) write(e *corev1.Event, write func() (*corev1.Event, error)) (*corev1.Event, error) {
	if a.now().Before(a.until) {
		return e, nil
	}
	out, err := write()
	if !apierrors.IsForbidden(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return out, err
	}
	a.until = a.now().Add(eventsDenied)
	if !a.told {
		a.told = true
		a.log.Warn("Events are not written, what they say is in this log only: grant create and patch on events", zap.String("namespace", e.Namespace), zap.Error(err))
	}
	return e, nil
}

// sharedEvents makes one Event of what every replica has to say. All replicas
// decide alike and say it at about the same time; an Event is named by what it
// says, so that the first of them makes it and the others find it. Its count is
// how often each of them said it, not how many there are.
type sharedEvents struct{ record.EventSink }

// Create implements [record.EventSink].
func (s sharedEvents) Create(e *corev1.Event) (*corev1.Event, error) {
	e = e.DeepCopy()
	e.Name = eventName(e)
	made, err := s.EventSink.Create(e)
	if !apierrors.IsAlreadyExists(err) {
		return made, err
	}
	// A patch needs no right to read Events. The answer holds the count to go on from.
	patch, err := json.Marshal(map[string]metav1.Time{"lastTimestamp": e.LastTimestamp})
	if err != nil {
		return nil, fmt.Errorf("encode time of Event %s: %w", e.Name, err)
	}
	return s.Patch(e, patch)
}

// maxEventPrefix leaves room for a dot and the hash in a name of 253 bytes.
const maxEventPrefix = 253 - 1 - 2*eventHashSize

const eventHashSize = 8

// eventName is the same for the same words about the same object.
func eventName(e *corev1.Event) string {
	about := e.InvolvedObject
	h := sha256.New()
	for _, s := range []string{e.Source.Component, about.APIVersion, about.Kind, about.Namespace, about.Name, string(about.UID),
		about.FieldPath, e.Type, e.Reason, e.Message} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(s), s) // a hash takes everything
	}
	prefix := strings.TrimRight(about.Name[:min(len(about.Name), maxEventPrefix)], ".-")
	return prefix + "." + hex.EncodeToString(h.Sum(nil)[:eventHashSize])
}
