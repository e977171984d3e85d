// Package apifake is a small Kubernetes API server for the tests of package ca.
//
// Unlike client-go's fake clientset it speaks HTTP and keeps the promises that
// those tests are about: resource versions grow, a stale update is a conflict,
// a second create is refused, calls can hang and fail, tokens are reviewed. It
// knows no validation, no defaulting and no kinds: an object is JSON at a path.
package apifake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// object is a Kubernetes object as JSON.
type object map[string]any

func (o object) meta() map[string]any {
	m, ok := o["metadata"].(map[string]any)
	if !ok {
		m = map[string]any{}
		o["metadata"] = m
	}
	return m
}

func (o object) field(name string) string { s, _ := o.meta()[name].(string); return s }

// Server is the API server. Its methods may be called from any goroutine.
type Server struct {
	http *httptest.Server
	stop chan struct{}

	mu       sync.Mutex
	version  int
	objects  map[string]map[string]object // by resource ("secrets"), then namespace/name
	watchers map[*watcher]bool
	calls    []string

	// Review answers TokenReviews, Access SubjectAccessReviews; Before runs
	// before any call and may answer it (then it returns true) or hang. Set them
	// with Set.
	review func(*authenticationv1.TokenReview)
	access func(*authorizationv1.SubjectAccessReview)
	before func(http.ResponseWriter, *http.Request) bool
}

type watcher struct {
	resource, namespace, name string
	events                    chan []byte
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s := &Server{stop: make(chan struct{}), objects: map[string]map[string]object{}, watchers: map[*watcher]bool{}}
	s.http = httptest.NewServer(s)
	t.Cleanup(func() {
		close(s.stop)
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// Client returns a client of the server with connections of its own.
func (s *Server) Client(t testing.TB) kubernetes.Interface {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := kubernetes.NewForConfigAndClient(&rest.Config{
		Host: s.http.URL, QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"},
	}, &http.Client{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// OnReview sets what answers TokenReviews.
func (s *Server) OnReview(f func(*authenticationv1.TokenReview)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.review = f
}

// OnAccess sets what answers SubjectAccessReviews.
func (s *Server) OnAccess(f func(*authorizationv1.SubjectAccessReview)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.access = f
}

// Before sets what sees every call first; true means that it was answered.
func (s *Server) Before(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// Hang makes matching calls wait until their client gives up.
func (s *Server) Hang(match func(*http.Request) bool) {
	s.Before(func(_ http.ResponseWriter, r *http.Request) bool {
		if !match(r) {
			return false
		}
		select {
		case <-r.Context().Done():
		case <-s.stop:
		}
		return true
	})
}

// Calls returns how many calls had the method and a path that ends so.
func (s *Server) Calls(method, suffix string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.calls {
		m, p, _ := strings.Cut(c, " ")
		if m == method && strings.HasSuffix(p, suffix) {
			n++
		}
	}
	return n
}

// Fail answers a call with a status.
func Fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: message,
	})
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.calls = append(s.calls, r.Method+" "+r.URL.Path)
	before := s.before
	s.mu.Unlock()
	// Read it now: net/http notices that a client has gone only after that.
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	if before != nil && before(w, r) {
		return
	}
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	// api/v1/... or apis/GROUP/VERSION/...
	path = path[min(len(path), 2+strings.Count(path[0], "s")):]
	namespace := ""
	if len(path) >= 3 && path[0] == "namespaces" {
		namespace, path = path[1], path[2:]
	}
	name := ""
	if len(path) == 2 {
		name = path[1]
	}
	if len(path) == 0 || len(path) > 2 {
		Fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no such path")
		return
	}
	switch path[0] {
	case "tokenreviews", "subjectaccessreviews":
		s.serveReview(w, r, path[0])
	default:
		s.serveObjects(w, r, path[0], namespace, name)
	}
}

func (s *Server) serveReview(w http.ResponseWriter, r *http.Request, kind string) {
	s.mu.Lock()
	review, access := s.review, s.access
	s.mu.Unlock()
	if kind == "tokenreviews" {
		var tr authenticationv1.TokenReview
		_ = json.NewDecoder(r.Body).Decode(&tr)
		if review != nil {
			review(&tr)
		}
		reply(w, &tr)
		return
	}
	var sar authorizationv1.SubjectAccessReview
	_ = json.NewDecoder(r.Body).Decode(&sar)
	if access != nil {
		access(&sar)
	}
	reply(w, &sar)
}

func (s *Server) serveObjects(w http.ResponseWriter, r *http.Request, resource, namespace, name string) {
	switch {
	case r.Method == http.MethodGet && name == "" && r.URL.Query().Get("watch") == "true":
		s.watch(w, r, resource, namespace)
	case r.Method == http.MethodGet && name == "":
		s.list(w, r, resource, namespace)
	default:
		s.object(w, r, resource, namespace, name)
	}
}

func (s *Server) object(w http.ResponseWriter, r *http.Request, resource, namespace, name string) {
	var in object
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			Fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
			return
		}
		name = in.field("name")
		in.meta()["namespace"] = namespace
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[resource] == nil {
		s.objects[resource] = map[string]object{}
	}
	key := namespace + "/" + name
	have, exists := s.objects[resource][key]
	switch {
	case r.Method == http.MethodPost && exists:
		Fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, resource+" "+key+" already exists")
	case r.Method != http.MethodPost && !exists:
		Fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, resource+" "+key+" not found")
	case r.Method == http.MethodGet:
		reply(w, have)
	case r.Method == http.MethodDelete:
		delete(s.objects[resource], key)
		s.changed(resource, "DELETED", have)
		reply(w, metav1.Status{Status: "Success"})
	case r.Method == http.MethodPut && in.field("resourceVersion") != "" && in.field("resourceVersion") != have.field("resourceVersion"):
		Fail(w, http.StatusConflict, metav1.StatusReasonConflict, resource+" "+key+" was modified")
	default:
		if in == nil {
			Fail(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, r.Method)
			return
		}
		event := "MODIFIED"
		if !exists {
			event = "ADDED"
			in.meta()["uid"] = fmt.Sprintf("uid-%d", s.version+1)
		}
		s.objects[resource][key] = in
		s.changed(resource, event, in)
		reply(w, in)
	}
}

// changed gives an object a new version and tells watchers; mu is held.
func (s *Server) changed(resource, event string, o object) {
	s.version++
	o.meta()["resourceVersion"] = strconv.Itoa(s.version)
	line := encodeEvent(event, o)
	for w := range s.watchers {
		if w.matches(resource, o) {
			select {
			case w.events <- line:
			default:
				panic("apifake: a watcher does not read")
			}
		}
	}
}

func encodeEvent(event string, o object) []byte {
	b, _ := json.Marshal(map[string]any{"type": event, "object": o})
	return append(b, '\n')
}

func (w *watcher) matches(resource string, o object) bool {
	return w.resource == resource && (w.namespace == "" || w.namespace == o.field("namespace")) &&
		(w.name == "" || w.name == o.field("name"))
}

func newWatcher(r *http.Request, resource, namespace string) *watcher {
	name := strings.TrimPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	return &watcher{resource: resource, namespace: namespace, name: name, events: make(chan []byte, 4096)}
}

// matching returns what a list or watch selects, in order; mu is held.
func (s *Server) matching(w *watcher) []object {
	var out []object
	for _, o := range s.objects[w.resource] {
		if w.matches(w.resource, o) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b object) int { return strings.Compare(a.field("name"), b.field("name")) })
	return out
}

func kindOf(resource string) (kind, apiVersion string) {
	switch resource {
	case "secrets":
		return "Secret", "v1"
	case "configmaps":
		return "ConfigMap", "v1"
	case "namespaces":
		return "Namespace", "v1"
	}
	return "Lease", "coordination.k8s.io/v1"
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, resource, namespace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind, api := kindOf(resource)
	items := s.matching(newWatcher(r, resource, namespace))
	if items == nil {
		items = []object{}
	}
	reply(w, map[string]any{
		"kind": kind + "List", "apiVersion": api,
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)}, "items": items,
	})
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource, namespace string) {
	me := newWatcher(r, resource, namespace)
	kind, api := kindOf(resource)
	s.mu.Lock()
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	for _, o := range s.matching(me) {
		typed := object{"kind": kind, "apiVersion": api}
		for k, v := range o {
			typed[k] = v
		}
		// After a list the events in between are sent as they would have been, or
		// close enough: as changes.
		if v, _ := strconv.Atoi(o.field("resourceVersion")); initial || v > since {
			me.events <- encodeEvent("ADDED", typed)
		}
	}
	if initial {
		me.events <- encodeEvent("BOOKMARK", object{"kind": kind, "apiVersion": api, "metadata": map[string]any{
			"resourceVersion": strconv.Itoa(s.version), "annotations": map[string]any{metav1.InitialEventsAnnotationKey: "true"},
		}})
	}
	s.watchers[me] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, me)
	}()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flusher := w.(http.Flusher)
	flusher.Flush()
	for {
		select {
		case line := <-me.events:
			_, _ = w.Write(line)
			flusher.Flush()
		case <-r.Context().Done():
			return
		case <-s.stop:
			return
		}
	}
}
