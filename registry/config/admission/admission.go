// Package admission answers API servers that ask whether an Istio object may be
// written: it is the validating webhook.
//
// It owns the exchange of AdmissionReviews. What makes an object valid is the
// business of registry/config. Nothing here calls an API server.
package admission

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// DefaultMaxBody is enough for the largest object an API server takes, twice: a
// review of a change has the old one too.
const DefaultMaxBody = 8 << 20

// readTimeout bounds the reading of a request. API servers wait 30 s at most for
// the answer.
const readTimeout = 10 * time.Second

// Bounds of warnings; API servers cut what is longer.
const (
	maxWarnings = 16
	maxWarning  = 250
)

// Config configures a [Handler].
type Config struct {
	// Cluster is named in messages: the one that objects are written to. It may
	// be empty.
	Cluster mesh.ClusterID
	// MaxBody is the size of a request in bytes; [DefaultMaxBody] if zero.
	MaxBody int64
	// Log tells what was refused; nil for none.
	Log *zap.Logger
	// Metrics takes galley_validation_passed, _failed and _http_error; nil for none.
	Metrics prometheus.Registerer
}

// Handler is the webhook.
type Handler struct {
	cfg     Config
	log     *zap.Logger
	metrics metrics
}

// New returns a handler for POST requests with an AdmissionReview of
// admission.k8s.io/v1 or v1beta1.
func New(c Config) (*Handler, error) {
	if c.MaxBody < 0 {
		return nil, fmt.Errorf("make validating webhook: body of %d bytes; use a positive number", c.MaxBody)
	}
	if c.MaxBody == 0 {
		c.MaxBody = DefaultMaxBody
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return &Handler{cfg: c, log: c.Log.Named("validation"), metrics: newMetrics(c.Metrics)}, nil
}

// ServeHTTP answers one review. What is no review at all gets an HTTP error, by
// which the API server applies the failure policy of the webhook.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	review, status, err := h.read(w, r)
	if err != nil {
		h.metrics.httpErrors.WithLabelValues(strconv.Itoa(status)).Inc()
		h.log.Warn("not a review", zap.Int("status", status), zap.Error(err))
		if status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", http.MethodPost)
		}
		http.Error(w, err.Error(), status)
		return
	}
	out := admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: h.review(review.Request)}
	out.Response.UID = review.Request.UID
	body, err := json.Marshal(out)
	if err != nil {
		h.metrics.httpErrors.WithLabelValues(strconv.Itoa(http.StatusInternalServerError)).Inc()
		http.Error(w, "encode review: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(body); err != nil {
		h.log.Debug("answer was not taken", zap.Error(err))
	}
}

// read takes the review out of a request. The status goes with the error.
func (h *Handler) read(w http.ResponseWriter, r *http.Request) (*admissionv1.AdmissionReview, int, error) {
	if r.Method != http.MethodPost {
		return nil, http.StatusMethodNotAllowed, fmt.Errorf("read review: method %s; use POST", strconv.Quote(r.Method))
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, http.StatusUnsupportedMediaType, errors.New("read review: content type is not application/json")
	}
	// Not every server has deadlines of its own, and some writers have none at all.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.cfg.MaxBody))
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("read review: larger than %d bytes", h.cfg.MaxBody)
		}
		return nil, http.StatusBadRequest, fmt.Errorf("read review: %w", err)
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("decode review: %w", err)
	}
	group := admissionv1.GroupName + "/"
	if review.Kind != "AdmissionReview" || review.APIVersion != group+"v1" && review.APIVersion != group+"v1beta1" {
		return nil, http.StatusBadRequest, errors.New("decode review: not an AdmissionReview of admission.k8s.io/v1")
	}
	if review.Request == nil {
		return nil, http.StatusBadRequest, errors.New("decode review: no request in it")
	}
	return &review, http.StatusOK, nil
}

// Reasons in galley_validation_failed.
const (
	reasonInvalid   = "invalid_resource"
	reasonMalformed = "crd_conversion_error"
)

// review judges one request. Everything that is no new state of a kind that is
// read is allowed.
func (h *Handler) review(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	kind, known := config.Lookup(r.Kind.Group+"/"+r.Kind.Version, r.Kind.Kind)
	writes := r.Operation == admissionv1.Create || r.Operation == admissionv1.Update
	if !writes || r.SubResource != "" || leaving(r.Object) {
		return &admissionv1.AdmissionResponse{Allowed: true}
	}
	if !known {
		return &admissionv1.AdmissionResponse{Allowed: true, Warnings: unread(r)}
	}
	labels := []string{kind.Group, r.Kind.Version, kind.Resource}
	warnings, err := config.Review(h.cfg.Cluster, kind, r.Object.Raw)
	out := &admissionv1.AdmissionResponse{Allowed: err == nil, Warnings: clip(warnings)}
	if err == nil {
		h.metrics.passed.WithLabelValues(labels...).Inc()
		return out
	}
	faults := config.FieldErrors(err)
	reason := reasonInvalid
	if len(faults) == 0 {
		reason = reasonMalformed
	}
	h.metrics.failed.WithLabelValues(append(labels, reason)...).Inc()
	out.Result = failure(kind, r, err, faults)
	h.log.Info("object refused", zap.String("kind", string(kind.Kind)), zap.String("namespace", r.Namespace), zap.String("name", r.Name),
		zap.String("user", r.UserInfo.Username), zap.Error(err))
	return out
}

// leaving reports whether an object is being deleted. Then its finalizers have to
// be removable, however wrong the object is.
func leaving(o runtime.RawExtension) bool {
	var doc struct {
		Metadata struct {
			DeletionTimestamp *string `json:"deletionTimestamp"`
		} `json:"metadata"`
	}
	return json.Unmarshal(o.Raw, &doc) == nil && doc.Metadata.DeletionTimestamp != nil
}

// failure says what is wrong as an API server says it of built-in kinds: in one
// line, and field by field.
func failure(kind config.Kind, r *admissionv1.AdmissionRequest, err error, faults []*config.FieldError) *metav1.Status {
	message := "error decoding configuration: " + err.Error()
	details := &metav1.StatusDetails{Name: r.Name, Group: kind.Group, Kind: string(kind.Kind)}
	if len(faults) > 0 {
		message = "configuration is invalid: "
		for i, f := range faults {
			if i > 0 {
				message += "; "
			}
			message += f.Error()
			details.Causes = append(details.Causes, metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: f.Field, Message: f.Message})
		}
	}
	return &metav1.Status{Status: metav1.StatusFailure, Message: message, Reason: metav1.StatusReasonInvalid,
		Code: http.StatusUnprocessableEntity, Details: details}
}

// clip keeps warnings within what API servers pass on.
func clip(warnings []string) []string {
	out := make([]string, 0, min(len(warnings), maxWarnings))
	for _, w := range warnings[:min(len(warnings), maxWarnings)] {
		if len(w) > maxWarning {
			cut := maxWarning
			for cut > 0 && !utf8.RuneStart(w[cut]) {
				cut--
			}
			w = w[:cut] + "..."
		}
		out = append(out, w)
	}
	return out
}

// unread warns who makes an object of Istio of a kind or version that nobody here
// reads: it is taken, and would be waited for in vain.
func unread(r *admissionv1.AdmissionRequest) []string {
	if !strings.HasSuffix(r.Kind.Group, ".istio.io") {
		return nil
	}
	return []string{fmt.Sprintf("%s of %s/%s is not read by this control plane: the object has no effect", r.Kind.Kind, r.Kind.Group, r.Kind.Version)}
}
