package build

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// patchListener applies a view's patches to a listener; nil if one removes it.
// The listener is changed. From the listener inwards, each level is patched
// before what is in it.
func patchListener(in Inputs, v View, l *listenerv3.Listener) *listenerv3.Listener {
	p := newPatcher(in, v, sideOfListener(l.GetName()), "listener "+l.GetName())
	if len(p.list) == 0 {
		return l
	}
	l = proto.CloneOf(l) // chains may share filters
	name, port := l.GetName(), l.GetAddress().GetSocketAddress().GetPortValue()
	about := func(to networking.EnvoyFilter_ApplyTo) []*patch {
		return slices.DeleteFunc(p.having(to), func(x *patch) bool { return !x.onListener(name, port) })
	}
	for _, x := range about(networking.EnvoyFilter_LISTENER) {
		switch x.op {
		case networking.EnvoyFilter_Patch_REMOVE:
			return nil
		case networking.EnvoyFilter_Patch_MERGE:
			l, _ = applied(p, x, l, func(next *listenerv3.Listener) error {
				err := merge(next, x.value, x.replaces)
				next.Name = name // by which it is asked for
				return err
			})
		}
	}
	l.ListenerFilters = p.listenerFilters().run(l.ListenerFilters, about(networking.EnvoyFilter_LISTENER_FILTER))
	c := &chainPatcher{p: p, listener: name, opened: v.Inbound.Spec().Opened,
		chains: about(networking.EnvoyFilter_FILTER_CHAIN), network: about(networking.EnvoyFilter_NETWORK_FILTER),
		http: about(networking.EnvoyFilter_HTTP_FILTER)}
	c.listenerChains(l)
	return l
}

// chainPatcher applies patches to the filter chains of a listener.
type chainPatcher struct {
	p                     *patcher
	listener              string
	opened                map[uint16]uint16
	chains, network, http []*patch
}

func (c *chainPatcher) listenerChains(l *listenerv3.Listener) {
	for _, x := range c.chains {
		switch x.op {
		case networking.EnvoyFilter_Patch_REMOVE:
			c.remove(l, x)
		case networking.EnvoyFilter_Patch_MERGE:
			for i, fc := range l.FilterChains {
				l.FilterChains[i] = c.merge(x, fc)
				if other := sameMatch(l, i); other != "" {
					c.p.fail(x, fmt.Errorf("filter chain %s matches what %s does; proxies refuse that", fc.GetName(), other))
					l.FilterChains[i] = fc
				}
			}
			if l.DefaultFilterChain != nil {
				l.DefaultFilterChain = c.merge(x, l.DefaultFilterChain)
			}
		}
	}
	for _, fc := range l.FilterChains {
		c.filters(fc)
	}
	if l.DefaultFilterChain != nil {
		c.filters(l.DefaultFilterChain)
	}
	for _, x := range c.chains {
		if x.op != networking.EnvoyFilter_Patch_ADD {
			continue
		}
		if fc, ok := valueOf[*listenerv3.FilterChain](c.p, x); ok {
			if err := endsWell[*listenerv3.Filter](isTerminalNetwork)(fc.GetFilters()); err != nil {
				c.p.fail(x, err)
				continue
			}
			l.FilterChains = append(l.FilterChains, fc)
			if other := sameMatch(l, len(l.FilterChains)-1); other != "" {
				c.p.fail(x, fmt.Errorf("filter chain %s matches what %s does; proxies refuse that", fc.GetName(), other))
				l.FilterChains = l.FilterChains[:len(l.FilterChains)-1]
			}
		}
	}
}

// sameMatch names another chain of a listener that matches the same connections as
// the i-th; "" if none does.
func sameMatch(l *listenerv3.Listener, i int) string {
	match := func(fc *listenerv3.FilterChain) *listenerv3.FilterChainMatch {
		if m := fc.GetFilterChainMatch(); m != nil {
			return m
		}
		return &listenerv3.FilterChainMatch{}
	}
	for j, other := range l.GetFilterChains() {
		if j != i && proto.Equal(match(other), match(l.GetFilterChains()[i])) {
			return cmp.Or(other.GetName(), "another")
		}
	}
	return ""
}

// remove takes out the chains that a patch is about. A listener without any is
// none: proxies would refuse it.
func (c *chainPatcher) remove(l *listenerv3.Listener, x *patch) {
	about := func(fc *listenerv3.FilterChain) bool { return x.onChain(c.listener, fc) }
	left := slices.DeleteFunc(slices.Clone(l.FilterChains), about)
	rest := l.DefaultFilterChain
	if rest != nil && about(rest) {
		rest = nil
	}
	if len(left) == 0 && rest == nil {
		c.p.fail(x, errors.New("no filter chain is left; remove the listener instead"))
		return
	}
	l.FilterChains, l.DefaultFilterChain = left, rest
}

func (c *chainPatcher) merge(x *patch, fc *listenerv3.FilterChain) *listenerv3.FilterChain {
	if !x.onChain(c.listener, fc) {
		return fc
	}
	out, _ := applied(c.p, x, fc, func(next *listenerv3.FilterChain) error {
		if err := merge(next, x.value, x.replaces); err != nil {
			return err
		}
		return endsWell[*listenerv3.Filter](isTerminalNetwork)(next.GetFilters())
	})
	return out
}

// filters patches the filters of a chain, and what is in them.
func (c *chainPatcher) filters(fc *listenerv3.FilterChain) {
	about := func(list []*patch) []*patch {
		return slices.DeleteFunc(slices.Clone(list), func(x *patch) bool { return !x.onChain(c.listener, fc) })
	}
	fc.Filters = c.p.networkFilters().run(fc.Filters, about(c.network))
	http := about(c.http)
	for i, f := range fc.Filters {
		if f.GetTypedConfig().MessageName() == hcmType {
			fc.Filters[i] = c.manager(f, http)
		}
	}
}

const hcmType = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"

// manager patches the HTTP filters of a connection manager and the routes that
// are written in it.
func (c *chainPatcher) manager(f *listenerv3.Filter, patches []*patch) *listenerv3.Filter {
	patches = slices.DeleteFunc(slices.Clone(patches), func(x *patch) bool {
		return x.filterName() != "" && !sameFilter(f.GetName(), x.filterName())
	})
	h := &hcmv3.HttpConnectionManager{}
	if err := f.GetTypedConfig().UnmarshalTo(h); err != nil {
		return f // of a patch that was reported already
	}
	routes := h.GetRouteConfig()
	if len(patches) == 0 && (routes == nil || !c.p.routing()) {
		return f
	}
	h.HttpFilters = c.p.httpFilters().run(h.HttpFilters, patches)
	if routes != nil {
		h.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: c.p.routes(routes, c.opened)}
	}
	config, err := toAny(h)
	if err != nil {
		return f
	}
	out := proto.CloneOf(f)
	out.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: config}
	return out
}
