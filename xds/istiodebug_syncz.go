package xds

import (
	"cmp"
	"fmt"
	"slices"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// syncz tells how far every proxy has taken what it was sent. Streams that only
// ask, like the one that asks now, are not proxies.
func (d *istioDebug) syncz(who asker) ([]NamedAny, error) {
	var out []NamedAny
	for _, s := range d.srv.sorted() {
		if !who.sees(s.proxy.Namespace) || s.onlyAsks() {
			continue
		}
		a, err := anypb.New(s.clientConfig())
		if err != nil {
			return nil, fmt.Errorf("encode state of proxy %s: %w", s.proxy.ID, err)
		}
		out = append(out, NamedAny{Name: s.id, Any: a})
	}
	return out, nil
}

// onlyAsks reports whether nothing but debug types were asked for on the stream.
func (s *stream) onlyAsks() bool {
	s.mu.Lock()
	for i := range s.types {
		if s.types[i].sub.started {
			s.mu.Unlock()
			return false
		}
	}
	s.mu.Unlock()
	s.others.mu.Lock()
	defer s.others.mu.Unlock()
	asked := false
	for url := range s.others.types {
		if !isDebugType(url) {
			return false
		}
		asked = true
	}
	return asked
}

func (s *stream) clientConfig() *statusv3.ClientConfig {
	text := structpb.NewStringValue
	c := &statusv3.ClientConfig{Node: &corev3.Node{Id: s.proxy.ID, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"CLUSTER_ID": text(string(s.proxy.Cluster)), "NAMESPACE": text(s.proxy.Namespace),
	}}}}
	if v := s.proxy.IstioVersion; v != "" {
		c.Node.Metadata.Fields["ISTIO_VERSION"] = text(v)
	}
	for _, t := range s.status().Types {
		c.GenericXdsConfigs = append(c.GenericXdsConfigs, t.generic())
	}
	c.GenericXdsConfigs = append(c.GenericXdsConfigs, s.otherConfigs()...)
	slices.SortFunc(c.GenericXdsConfigs, func(a, b *statusv3.ClientConfig_GenericXdsConfig) int { return cmp.Compare(a.TypeUrl, b.TypeUrl) })
	return c
}

// generic is the state of one type as istioctl reads it. What was marked before
// anything was sent at all is not sent, rather than stale.
func (t *TypeStatus) generic() *statusv3.ClientConfig_GenericXdsConfig {
	g := &statusv3.ClientConfig_GenericXdsConfig{TypeUrl: t.TypeURL}
	if !t.SentAt.IsZero() {
		g.LastUpdated = timestamppb.New(t.SentAt)
	}
	switch {
	case t.Status == StatusError:
		g.ConfigStatus = statusv3.ConfigStatus_ERROR
		g.ErrorState = &adminv3.UpdateFailureState{LastUpdateAttempt: g.LastUpdated, Details: t.Error}
	case t.Status == StatusNotSent, t.Status == StatusStale && t.SentNonce == "":
		g.ConfigStatus = statusv3.ConfigStatus_NOT_SENT
	case t.Status == StatusStale:
		g.ConfigStatus = statusv3.ConfigStatus_STALE
	default:
		g.ConfigStatus = statusv3.ConfigStatus_SYNCED
	}
	return g
}

// otherConfigs is the state of the types that are not shared, like secrets.
func (s *stream) otherConfigs() []*statusv3.ClientConfig_GenericXdsConfig {
	s.others.mu.Lock()
	defer s.others.mu.Unlock()
	var out []*statusv3.ClientConfig_GenericXdsConfig
	for url, o := range s.others.types {
		if isDebugType(url) {
			continue
		}
		g := &statusv3.ClientConfig_GenericXdsConfig{TypeUrl: url, ConfigStatus: statusv3.ConfigStatus_SYNCED}
		switch {
		case o.sub.rejected != "":
			g.ConfigStatus = statusv3.ConfigStatus_ERROR
			g.ErrorState = &adminv3.UpdateFailureState{Details: truncate(o.sub.rejected, maxLoggedMessage)}
		case o.sub.sent == 0:
			g.ConfigStatus = statusv3.ConfigStatus_NOT_SENT
		case o.sub.waiting:
			g.ConfigStatus = statusv3.ConfigStatus_STALE
		}
		out = append(out, g)
	}
	return out
}
