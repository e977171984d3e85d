package xds

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// known reports whether the mesh has a service with the host name.
func known(in build.Inputs, host string) bool { return len(in.Catalog.Host(mesh.Hostname(host))) > 0 }

// held returns what a stream was sent of a type, newest content, as Anys.
func (s *stream) held(url string) (list []*anypb.Any, names []string) {
	k := s.srv.kinds.byURL[url]
	if k == nil {
		return nil, nil
	}
	s.mu.Lock()
	gr := s.types[k.index].group
	s.mu.Unlock()
	if gr == nil {
		return nil, nil
	}
	for _, f := range *gr.facets.Load() {
		for _, e := range f.entries {
			if r := e.current.Load(); r.exists() {
				list = append(list, &anypb.Any{TypeUrl: url, Value: r.Message()})
				names = append(names, e.name)
			}
		}
	}
	return list, names
}

// serveEdsz prints the assignments that a proxy was sent, as istiod does: an
// array of ClusterLoadAssignments.
func (srv *Server) serveEdsz(w http.ResponseWriter, r *http.Request) {
	s := srv.proxyOf(w, r)
	if s == nil {
		return
	}
	list, _ := s.held(TypeEDS)
	out := make([]json.RawMessage, 0, len(list))
	for _, a := range list {
		m, err := a.UnmarshalNew()
		if err == nil {
			var b []byte
			if b, err = protojson.Marshal(m); err == nil {
				out = append(out, b)
			}
		}
		if err != nil {
			http.Error(w, fmt.Sprintf("render an assignment of proxy %s: %v", s.proxy.ID, err), http.StatusInternalServerError)
			return
		}
	}
	writeJSON(w, r, out)
}

func endpointsDump(s *stream) *adminv3.EndpointsConfigDump {
	d := &adminv3.EndpointsConfigDump{}
	list, _ := s.held(TypeEDS)
	for _, a := range list {
		d.DynamicEndpointConfigs = append(d.DynamicEndpointConfigs, &adminv3.EndpointsConfigDump_DynamicEndpointConfig{EndpointConfig: a})
	}
	return d
}

// serveNdsz prints the name table that a proxy's agent gets if it asks.
func (srv *Server) serveNdsz(w http.ResponseWriter, r *http.Request) {
	s := srv.proxyOf(w, r)
	if s == nil {
		return
	}
	k := srv.kinds.byURL[build.TypeNameTable]
	if k == nil {
		http.Error(w, "name tables are not served", http.StatusNotFound)
		return
	}
	m, err := k.gen.Build(srv.snapshot.inputs(), s.currentView(), "")
	if err != nil || isNil(m) {
		http.Error(w, fmt.Sprintf("build the name table of proxy %s: %v", s.proxy.ID, err), http.StatusInternalServerError)
		return
	}
	writeProto(w, r, m)
}

// serveConfigDump prints what a proxy was sent in the form of Envoy's own
// config_dump. types=clusters,listeners,routes,extensions,endpoints selects, include_eds
// adds the endpoints.
func (srv *Server) serveConfigDump(w http.ResponseWriter, r *http.Request) {
	s := srv.proxyOf(w, r)
	if s == nil {
		return
	}
	q := r.URL.Query()
	_, extensions := s.held(build.TypeExtension)
	want := map[string]bool{"clusters": true, "listeners": true, "routes": true, "extensions": len(extensions) > 0, "endpoints": q.Has("include_eds")}
	if types := q.Get("types"); types != "" {
		clear(want)
		for _, t := range strings.Split(types, ",") {
			if k := srv.kinds.byURL[strings.TrimSpace(t)]; k != nil {
				t = map[string]string{"cds": "clusters", "eds": "endpoints", "lds": "listeners", "rds": "routes", "ecds": "extensions"}[k.short]
			}
			want[strings.TrimSpace(t)] = true
		}
	}
	out := &adminv3.ConfigDump{}
	for _, part := range []struct {
		name string
		dump func(*stream) proto.Message
	}{
		{"clusters", clustersDump}, {"listeners", listenersDump}, {"routes", routesDump},
		{"extensions", extensionsDump},
		{"endpoints", func(s *stream) proto.Message { return endpointsDump(s) }},
	} {
		if !want[part.name] {
			continue
		}
		a, err := anypb.New(part.dump(s))
		if err != nil {
			http.Error(w, "render "+part.name+": "+err.Error(), http.StatusInternalServerError)
			return
		}
		out.Configs = append(out.Configs, a)
	}
	writeProto(w, r, out)
}

// sentAt is when a type was sent last, and its version.
func (s *stream) sentAt(url string) (version string, at *timestamppb.Timestamp) {
	k := s.srv.kinds.byURL[url]
	if k == nil {
		return "", nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.types[k.index]
	if t.sentAt.IsZero() {
		return "", nil
	}
	return hex16(t.sentVersion), timestamppb.New(t.sentAt)
}

func clustersDump(s *stream) proto.Message {
	version, at := s.sentAt(TypeCDS)
	d := &adminv3.ClustersConfigDump{VersionInfo: version}
	list, _ := s.held(TypeCDS)
	for _, a := range list {
		d.DynamicActiveClusters = append(d.DynamicActiveClusters, &adminv3.ClustersConfigDump_DynamicCluster{Cluster: a, LastUpdated: at})
	}
	return d
}

func listenersDump(s *stream) proto.Message {
	version, at := s.sentAt(TypeLDS)
	d := &adminv3.ListenersConfigDump{VersionInfo: version}
	list, names := s.held(TypeLDS)
	for i, a := range list {
		d.DynamicListeners = append(d.DynamicListeners, &adminv3.ListenersConfigDump_DynamicListener{Name: names[i],
			ActiveState: &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: version, Listener: a, LastUpdated: at}})
	}
	return d
}

func routesDump(s *stream) proto.Message {
	version, at := s.sentAt(TypeRDS)
	d := &adminv3.RoutesConfigDump{}
	list, _ := s.held(TypeRDS)
	for _, a := range list {
		d.DynamicRouteConfigs = append(d.DynamicRouteConfigs, &adminv3.RoutesConfigDump_DynamicRouteConfig{VersionInfo: version, RouteConfig: a, LastUpdated: at})
	}
	return d
}

func extensionsDump(s *stream) proto.Message {
	version, at := s.sentAt(build.TypeExtension)
	d := &adminv3.EcdsConfigDump{}
	list, _ := s.held(build.TypeExtension)
	for _, a := range list {
		d.EcdsFilters = append(d.EcdsFilters, &adminv3.EcdsConfigDump_EcdsFilterConfig{VersionInfo: version, EcdsFilter: a, LastUpdated: at})
	}
	return d
}
