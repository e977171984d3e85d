package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
	meshconfig "istio.io/api/mesh/v1alpha1"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/mesh/inject"
)

// Defaults of [Config].
const (
	DefaultMaxBody    = 6 << 20
	DefaultTimeout    = 10 * time.Second
	DefaultConcurrent = 64
)

// Facts are what is known about the place where a pod is made.
type Facts struct {
	// Namespace is nil if it is not known.
	Namespace *inject.Namespace
	// Network of the cluster, "" if it is not known.
	Network string
	// NativeSidecars: see [inject.Request].
	NativeSidecars bool
}

// Config configures a [Handler].
type Config struct {
	// Current returns the injection configuration in force, nil before there is any.
	Current func() *inject.Config
	// Mesh returns the mesh's settings now.
	Mesh func() *meshconfig.MeshConfig
	// ProxyConfigs lists the ProxyConfig objects of the mesh, oldest first; nil for none.
	ProxyConfigs func() []inject.ProxyConfigResource
	// Facts finds what is known of a namespace of a cluster; nil knows nothing.
	// It must return when the context ends.
	Facts func(ctx context.Context, cluster, namespace string) Facts
	// Primary is the cluster of reviews whose path and values name none.
	Primary string
	// MaxBody bounds a review, in bytes; 0 is [DefaultMaxBody].
	MaxBody int64
	// Timeout bounds an answer; 0 is [DefaultTimeout]. A shorter time that the
	// API server names in its query counts.
	Timeout time.Duration
	// Concurrent is how many reviews are worked on at once; 0 is [DefaultConcurrent].
	Concurrent int
	Log        *zap.Logger
	Registerer prometheus.Registerer
}

// Handler is the HTTP handler of /inject and /inject/....
type Handler struct {
	cfg     Config
	log     *zap.Logger
	slots   chan struct{}
	metrics *metrics
	// lines bounds the log lines that callers can cause: anybody in the cluster
	// may call a webhook.
	lines *rate.Limiter
}

// New makes a handler.
func New(c Config) (*Handler, error) {
	if c.Current == nil || c.Mesh == nil {
		return nil, errors.New("make injection webhook: set Current and Mesh")
	}
	if c.MaxBody <= 0 {
		c.MaxBody = DefaultMaxBody
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Concurrent <= 0 {
		c.Concurrent = DefaultConcurrent
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, fmt.Errorf("make injection webhook: %w", err)
	}
	return &Handler{cfg: c, log: c.Log, slots: make(chan struct{}, c.Concurrent), metrics: m, lines: rate.NewLimiter(20, 100)}, nil
}

// httpError is answered as an HTTP status: the failure policy decides then.
type httpError struct {
	status int
	err    error
}

func (e *httpError) Error() string { return e.err.Error() }
func (e *httpError) Unwrap() error { return e.err }

func refuse(status int, format string, args ...any) error {
	return &httpError{status, fmt.Errorf(format, args...)}
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	h.metrics.requests.Inc()
	defer func() { h.metrics.seconds.Observe(time.Since(begin).Seconds()) }()
	defer func() {
		if p := recover(); p != nil {
			h.metrics.failures.Inc()
			h.log.Error("injection panicked", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			http.Error(w, "injection failed: this is a defect, see the log of the control plane", http.StatusInternalServerError)
		}
	}()
	ctx, cancel := context.WithTimeout(r.Context(), h.timeout(r))
	defer cancel()
	answer, err := h.answer(ctx, w, r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) // the API server went away: nobody to tell
}

func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	h.metrics.failures.Inc()
	status := http.StatusInternalServerError
	var he *httpError
	if errors.As(err, &he) {
		status = he.status
	}
	if h.lines.Allow() {
		h.log.Warn("admission review not answered", zap.String("path", r.URL.Path), zap.String("from", r.RemoteAddr), zap.Error(err))
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	http.Error(w, err.Error(), status)
}

// timeout is the time for an answer: the API server says how long it waits.
func (h *Handler) timeout(r *http.Request) time.Duration {
	if d, err := time.ParseDuration(r.URL.Query().Get("timeout")); err == nil && d > 0 {
		return min(d, h.cfg.Timeout)
	}
	return h.cfg.Timeout
}

// answer reads a review and encodes the answer to it.
func (h *Handler) answer(ctx context.Context, w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return nil, refuse(http.StatusMethodNotAllowed, "method %s: admission reviews are posted", r.Method)
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, refuse(http.StatusUnsupportedMediaType, "content type %s: admission reviews are application/json", strconv.Quote(r.Header.Get("Content-Type")))
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return nil, refuse(http.StatusServiceUnavailable, "%d pods are being injected, which is the most at a time", h.cfg.Concurrent)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.cfg.MaxBody))
	if err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return nil, refuse(http.StatusRequestEntityTooLarge, "admission review of more than %d bytes", h.cfg.MaxBody)
		}
		return nil, refuse(http.StatusBadRequest, "read admission review: %w", err)
	}
	review, err := decodeReview(body)
	if err != nil {
		return nil, &httpError{http.StatusBadRequest, err}
	}
	response, err := h.review(ctx, r.URL.Path, review.Request)
	if err != nil {
		return nil, err
	}
	response.UID = review.Request.UID
	out, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: response})
	if err != nil {
		return nil, fmt.Errorf("encode admission review: %w", err)
	}
	return out, nil
}

// decodeReview reads an AdmissionReview. Both versions have the same fields.
func decodeReview(body []byte) (*admissionv1.AdmissionReview, error) {
	if len(body) == 0 {
		return nil, errors.New("read admission review: the body is empty")
	}
	review := &admissionv1.AdmissionReview{}
	if err := json.Unmarshal(body, review); err != nil {
		return nil, fmt.Errorf("read admission review: %w", err)
	}
	switch {
	case review.Kind != "AdmissionReview" || review.APIVersion != "admission.k8s.io/v1" && review.APIVersion != "admission.k8s.io/v1beta1":
		return nil, fmt.Errorf("read admission review: %q of %q: want AdmissionReview of admission.k8s.io/v1 or v1beta1", review.Kind, review.APIVersion)
	case review.Request == nil:
		return nil, errors.New("read admission review: it has no request")
	}
	return review, nil
}

// review decides about one request. Errors are those that the failure policy is
// to decide about.
func (h *Handler) review(ctx context.Context, path string, req *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	if req.Operation != admissionv1.Create && req.Operation != "" || req.SubResource != "" || req.Kind.Kind != "" && req.Kind.Kind != "Pod" {
		h.metrics.skips.Inc()
		return &admissionv1.AdmissionResponse{Allowed: true}, nil
	}
	current := h.cfg.Current()
	if current == nil {
		return nil, refuse(http.StatusServiceUnavailable, "the injection configuration has not been read yet")
	}
	pod := &corev1.Pod{}
	if err := json.Unmarshal(req.Object.Raw, pod); err != nil {
		return nil, refuse(http.StatusBadRequest, "read pod of admission review: %w", err)
	}
	pod.ManagedFields = nil // large, and nothing that counts
	r := h.request(ctx, current, path, pod, req.Namespace)
	if ctx.Err() != nil {
		return nil, refuse(http.StatusServiceUnavailable, "find out about namespace %s: %w", req.Namespace, ctx.Err())
	}
	result, err := current.Inject(r)
	if err != nil {
		return h.denied(err), nil
	}
	return h.allowed(pod, r.Namespace, current.ClusterOf(r), result), nil
}

// request gathers what injection needs to know.
func (h *Handler) request(ctx context.Context, current *inject.Config, path string, pod *corev1.Pod, namespace string) inject.Request {
	if pod.Namespace != "" {
		namespace = pod.Namespace
	}
	r := inject.Request{Pod: pod, Namespace: namespace, Mesh: h.cfg.Mesh(), Env: inject.ParsePath(path), Cluster: h.cfg.Primary}
	if !current.Decide(pod, namespace).Inject {
		return r // what else there is to know does not matter
	}
	if h.cfg.ProxyConfigs != nil {
		r.ProxyConfigs = h.cfg.ProxyConfigs()
	}
	if h.cfg.Facts != nil {
		f := h.cfg.Facts(ctx, current.ClusterOf(r), namespace)
		r.InNamespace, r.Network, r.NativeSidecars = f.Namespace, f.Network, f.NativeSidecars
	}
	return r
}

// denied answers that a pod cannot be made as it is.
func (h *Handler) denied(err error) *admissionv1.AdmissionResponse {
	h.metrics.failures.Inc()
	if h.lines.Allow() {
		h.log.Warn("pod refused", zap.Error(err))
	}
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Status: metav1.StatusFailure, Message: err.Error(),
		Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity}}
}

func (h *Handler) allowed(pod *corev1.Pod, namespace, cluster string, result *inject.Result) *admissionv1.AdmissionResponse {
	out := &admissionv1.AdmissionResponse{Allowed: true, Warnings: result.Warnings}
	name := pod.Name
	if name == "" {
		name = pod.GenerateName + "*"
	}
	fields := []zap.Field{zap.String("namespace", namespace), zap.String("pod", name), zap.String("because", result.Reason)}
	if !result.Inject {
		h.metrics.skips.Inc()
		h.log.Debug("pod not injected", fields...)
		return out
	}
	h.metrics.successes.Inc()
	if h.lines.Allow() {
		h.log.Info("pod injected", append(fields, zap.String("cluster", cluster), zap.Int("patch bytes", len(result.Patch)))...)
	}
	kind := admissionv1.PatchTypeJSONPatch
	out.Patch, out.PatchType = result.Patch, &kind
	return out
}
