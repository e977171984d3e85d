package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// runEvents writes the Events of this replica.
func (k *kubeWorld) runEvents(ctx context.Context) error {
	k.events.StartRecordingToSink(sharedEvents{&typedcorev1.EventSinkImpl{Interface: k.client.CoreV1().Events("")}})
	<-ctx.Done()
	k.events.Shutdown()
	return nil
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
