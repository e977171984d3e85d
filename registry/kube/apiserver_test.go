package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// fakeServer speaks list and watch over HTTP as an API server does: resource
// versions, streamed lists, bookmarks, 410 for what it has forgotten. It can
// refuse kinds and cut watches.
type fakeServer struct {
	*httptest.Server
	streams bool // it knows sendInitialEvents

	mu        sync.Mutex
	rv        int
	forgotten int // versions up to here are answered with 410
	objects   map[string]map[string]json.RawMessage
	history   []historic
	refuse    map[string]int // resource -> status
	watchers  map[int]*fakeWatcher
	next      int
	lists     map[string]int // complete readings, streamed or not
}

type historic struct {
	rv       int
	resource string
	kind     string // ADDED, MODIFIED, DELETED
	object   json.RawMessage
}

type fakeWatcher struct {
	resource string
	events   chan historic
	cut      chan struct{}
}

func newFakeServer(t *testing.T, streams bool) *fakeServer {
	f := &fakeServer{streams: streams, rv: 100, objects: map[string]map[string]json.RawMessage{}, refuse: map[string]int{},
		watchers: map[int]*fakeWatcher{}, lists: map[string]int{}}
	for _, r := range []string{"services", "endpointslices", "pods", "nodes", "namespaces", "configmaps"} {
		f.objects[r] = map[string]json.RawMessage{}
	}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(func() {
		f.cut()
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

func (f *fakeServer) rest() *rest.Config {
	c := &rest.Config{Host: f.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}}
	RESTDefaults(c)
	return c
}

// install makes the server have a kind of custom resource.
func (f *fakeServer) install(resource string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[resource] = map[string]json.RawMessage{}
}

// set creates or changes an object and tells the watchers.
func (f *fakeServer) set(t *testing.T, resource string, obj any) {
	raw, err := json.Marshal(obj)
	require.NoError(t, err)
	var doc map[string]any
	require.NoError(t, json.Unmarshal(raw, &doc))
	doc["apiVersion"], doc["kind"] = apiOf(resource)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rv++
	meta := doc["metadata"].(map[string]any)
	meta["resourceVersion"] = strconv.Itoa(f.rv)
	raw, err = json.Marshal(doc)
	require.NoError(t, err)
	key := fmt.Sprint(meta["namespace"], "/", meta["name"])
	kind := "MODIFIED"
	if f.objects[resource][key] == nil {
		kind = "ADDED"
	}
	f.objects[resource][key] = raw
	f.happened(historic{f.rv, resource, kind, raw})
}

func (f *fakeServer) remove(resource, key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.objects[resource][key]
	delete(f.objects[resource], key)
	f.rv++
	f.happened(historic{f.rv, resource, "DELETED", old})
}

func (f *fakeServer) happened(h historic) {
	f.history = append(f.history, h)
	for _, w := range f.watchers {
		if w.resource == h.resource {
			w.events <- h
		}
	}
}

// cut ends all watches.
func (f *fakeServer) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watchers {
		close(w.cut)
	}
	f.watchers = map[int]*fakeWatcher{}
}

// refuseKind answers everything about a kind with a status; 0 ends that. Its
// watches are cut.
func (f *fakeServer) refuseKind(resource string, status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse[resource] = status
}

// forget makes every watch fail that starts from what was until now.
func (f *fakeServer) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rv++
	f.forgotten = f.rv
}

// rewind takes the server back to before anything was watched, without an object
// that came later, and cuts all watches.
func (f *fakeServer) rewind(resource, key string) {
	f.mu.Lock()
	f.rv, f.history = 50, nil
	delete(f.objects[resource], key)
	f.mu.Unlock()
	f.cut()
}

// ahead answers a request for a version that the server has not reached, as API
// servers do, and reports whether it did.
func (f *fakeServer) ahead(w http.ResponseWriter, version string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n, _ := strconv.Atoi(version); n <= f.rv {
		return false
	}
	w.WriteHeader(http.StatusGatewayTimeout)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure",
		Code: http.StatusGatewayTimeout, Reason: metav1.StatusReasonTimeout, Message: "Too large resource version: " + version,
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}}})
	return true
}

func (f *fakeServer) listed(resource string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists[resource]
}

func apiOf(resource string) (version, kind string) {
	switch resource {
	case "services":
		return "v1", "Service"
	case "endpointslices":
		return "discovery.k8s.io/v1", "EndpointSlice"
	case "pods":
		return "v1", "Pod"
	case "nodes":
		return "v1", "Node"
	case "namespaces":
		return "v1", "Namespace"
	case "configmaps":
		return "v1", "ConfigMap"
	case "gateways.networking.istio.io":
		return "networking.istio.io/v1", "Gateway"
	case "workloadentries.networking.istio.io":
		return "networking.istio.io/v1", "WorkloadEntry"
	}
	return "gateway.networking.k8s.io/v1", "Gateway"
}

func (f *fakeServer) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	resource := parts[len(parts)-1]
	if group := parts[1]; strings.HasSuffix(group, "istio.io") || strings.HasPrefix(group, "gateway.") {
		resource += "." + group
	}
	q := r.URL.Query()
	f.mu.Lock()
	status := f.refuse[resource]
	if f.objects[resource] == nil {
		status = http.StatusNotFound
	}
	f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case status != 0:
		refuseWith(w, status, resource)
	case f.ahead(w, q.Get("resourceVersion")):
	case q.Get("watch") == "true" || q.Get("watch") == "1":
		f.watch(w, r, resource)
	default:
		f.list(w, resource, q.Get("fieldSelector"))
	}
}

func refuseWith(w http.ResponseWriter, status int, resource string) {
	reason := map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound, 410: metav1.StatusReasonExpired,
		401: metav1.StatusReasonUnauthorized, 500: metav1.StatusReasonInternalError, 422: metav1.StatusReasonInvalid}[status]
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure",
		Code: int32(status), Reason: reason, Message: resource + " refused"})
}

func (f *fakeServer) selected(resource, fields string) []json.RawMessage {
	var out []json.RawMessage
	for _, k := range slices.Sorted(maps.Keys(f.objects[resource])) {
		if name, ok := strings.CutPrefix(fields, "metadata.name="); ok && !strings.HasSuffix(k, "/"+name) {
			continue
		}
		out = append(out, f.objects[resource][k])
	}
	return out
}

func (f *fakeServer) list(w http.ResponseWriter, resource, fields string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists[resource]++
	version, kind := apiOf(resource)
	items := f.selected(resource, fields)
	if items == nil {
		items = []json.RawMessage{}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": version, "kind": kind + "List",
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(f.rv)}, "items": items})
}

func (f *fakeServer) watch(w http.ResponseWriter, r *http.Request, resource string) {
	q := r.URL.Query()
	initial := q.Get("sendInitialEvents") == "true"
	if initial && !f.streams {
		refuseWith(w, http.StatusUnprocessableEntity, resource)
		return
	}
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	f.mu.Lock()
	if !initial && from < f.forgotten {
		f.mu.Unlock()
		refuseWith(w, http.StatusGone, resource)
		return
	}
	var first []historic
	at := f.rv
	if initial {
		f.lists[resource]++
		for _, o := range f.selected(resource, q.Get("fieldSelector")) {
			first = append(first, historic{0, resource, "ADDED", o})
		}
	} else {
		for _, h := range f.history {
			if h.resource == resource && h.rv > from {
				first = append(first, h)
			}
		}
	}
	me := &fakeWatcher{resource, make(chan historic, 1024), make(chan struct{})}
	id := f.next
	f.next++
	f.watchers[id] = me
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, id)
	}()
	send := func(kind string, object any) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
	}
	for _, h := range first {
		send(h.kind, h.object)
	}
	if initial {
		version, kind := apiOf(resource)
		send("BOOKMARK", map[string]any{"apiVersion": version, "kind": kind, "metadata": map[string]any{
			"resourceVersion": strconv.Itoa(at), "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"}}})
	}
	w.(http.Flusher).Flush()
	for {
		select {
		case h := <-me.events:
			send(h.kind, h.object)
			w.(http.Flusher).Flush()
		case <-me.cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}
