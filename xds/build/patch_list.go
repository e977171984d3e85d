package build

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"
)

// extension is what has a name and a configuration packed in it: a filter.
type extension interface {
	proto.Message
	GetName() string
	GetTypedConfig() *anypb.Any
}

// listPatch is how patches change a list: of filters, or of routes.
type listPatch[T proto.Message] struct {
	p *patcher
	// names says whether a patch names an element, and is whether it is this one.
	names func(*patch) bool
	is    func(*patch, T) bool
	// place is where an element goes that is added.
	place func([]T, *patch, T) int
	// check refuses a list that proxies would not take.
	check func([]T) error
}

// apply makes the changes of one patch that are about the list itself; what
// merges is done by merges.
func (l *listPatch[T]) apply(list []T, x *patch) []T {
	next, err := l.changed(slices.Clone(list), x)
	if err == nil {
		err = l.check(next)
	}
	if err != nil {
		l.p.fail(x, err)
		return list
	}
	return next
}

func (l *listPatch[T]) changed(list []T, x *patch) ([]T, error) {
	at := slices.IndexFunc(list, func(e T) bool { return l.names(x) && l.is(x, e) })
	if x.op == networking.EnvoyFilter_Patch_REMOVE {
		if l.names(x) {
			list = slices.DeleteFunc(list, func(e T) bool { return l.is(x, e) })
		}
		return list, nil
	}
	if x.op == networking.EnvoyFilter_Patch_MERGE {
		return list, nil
	}
	v, ok := x.value.(T)
	if !ok {
		return nil, fmt.Errorf("value is a %T", x.value)
	}
	v = proto.CloneOf(v)
	switch x.op {
	case networking.EnvoyFilter_Patch_ADD:
		return slices.Insert(list, l.place(list, x, v), v), nil
	case networking.EnvoyFilter_Patch_INSERT_FIRST:
		return slices.Insert(list, 0, v), nil
	case networking.EnvoyFilter_Patch_INSERT_AFTER:
		if !l.names(x) {
			return slices.Insert(list, l.place(list, x, v), v), nil
		} else if at >= 0 {
			return slices.Insert(list, at+1, v), nil
		}
	case networking.EnvoyFilter_Patch_INSERT_BEFORE:
		if !l.names(x) {
			at = 0
		}
		if at >= 0 {
			return slices.Insert(list, at, v), nil
		}
	case networking.EnvoyFilter_Patch_REPLACE:
		if at >= 0 {
			list[at] = v
		}
	}
	return list, nil
}

// merges merges one patch into the elements that it is about.
func (l *listPatch[T]) merges(list []T, x *patch) []T {
	if x.op != networking.EnvoyFilter_Patch_MERGE {
		return list
	}
	out := slices.Clone(list)
	for i, e := range out {
		if l.is(x, e) {
			out[i], _ = applied(l.p, x, e, func(next T) error { return merge(next, x.value, x.replaces) })
		}
	}
	if err := l.check(out); err != nil {
		l.p.fail(x, err)
		return list
	}
	return out
}

// run applies patches to a list: first those that add and remove, then those
// that merge, which so reach what was added.
func (l *listPatch[T]) run(list []T, patches []*patch) []T {
	for _, x := range patches {
		list = l.apply(list, x)
	}
	for _, x := range patches {
		list = l.merges(list, x)
	}
	return list
}

// networkFilters is how patches change the filters of a chain.
func (p *patcher) networkFilters() *listPatch[*listenerv3.Filter] {
	return &listPatch[*listenerv3.Filter]{
		p:     p,
		names: func(x *patch) bool { return x.filterName() != "" },
		is: func(x *patch, f *listenerv3.Filter) bool {
			return x.filterName() == "" || sameFilter(f.GetName(), x.filterName())
		},
		place: addFilter[*listenerv3.Filter](isTerminalNetwork),
		check: endsWell[*listenerv3.Filter](isTerminalNetwork),
	}
}

// httpFilters is how patches change the filters of a connection manager.
func (p *patcher) httpFilters() *listPatch[*hcmv3.HttpFilter] {
	return &listPatch[*hcmv3.HttpFilter]{
		p:     p,
		names: func(x *patch) bool { return x.subFilterName() != "" },
		is: func(x *patch, f *hcmv3.HttpFilter) bool {
			return x.subFilterName() == "" || sameFilter(f.GetName(), x.subFilterName())
		},
		place: addFilter[*hcmv3.HttpFilter](isRouter),
		check: endsWell[*hcmv3.HttpFilter](isRouter),
	}
}

// listenerFilters is how patches change the filters of a listener.
func (p *patcher) listenerFilters() *listPatch[*listenerv3.ListenerFilter] {
	return &listPatch[*listenerv3.ListenerFilter]{
		p:     p,
		names: func(x *patch) bool { return x.match.GetListener().GetListenerFilter() != "" },
		is: func(x *patch, f *listenerv3.ListenerFilter) bool {
			want := x.match.GetListener().GetListenerFilter()
			return want == "" || sameFilter(f.GetName(), want)
		},
		place: func(list []*listenerv3.ListenerFilter, _ *patch, _ *listenerv3.ListenerFilter) int { return len(list) },
		check: func([]*listenerv3.ListenerFilter) error { return nil },
	}
}

// addFilter says where a filter goes that is added: where its class belongs, else
// to the end, but before the filter that ends the list, behind which none may be.
func addFilter[T extension](terminal func(protoreflect.FullName) bool) func([]T, *patch, T) int {
	return func(list []T, x *patch, v T) int {
		end := len(list)
		if end > 0 && terminal(typeOf(list[end-1])) && !terminal(typeOf(v)) {
			end--
		}
		behind := func(names ...string) int {
			at := 0
			for i, f := range list[:end] {
				if slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(f.GetName(), n) }) {
					at = i + 1
				}
			}
			return at
		}
		switch x.class {
		case networking.EnvoyFilter_Patch_AUTHN:
			return behind(metadataExchangeName, "jwt_authn", "istio_authn")
		case networking.EnvoyFilter_Patch_AUTHZ:
			return behind(metadataExchangeName, "jwt_authn", "istio_authn", ".rbac", "ext_authz")
		case networking.EnvoyFilter_Patch_STATS:
			if i := slices.IndexFunc(list, func(f T) bool { return f.GetName() == statsName }); i >= 0 {
				return i
			}
		}
		return end
	}
}

// endsWell refuses a list of filters of which the last does not end it, or an
// earlier one does.
func endsWell[T extension](terminal func(protoreflect.FullName) bool) func([]T) error {
	return func(list []T) error {
		if len(list) == 0 {
			return errors.New("no filter is left; keep the last")
		}
		for _, f := range list[:len(list)-1] {
			if terminal(typeOf(f)) {
				return fmt.Errorf("filter %s is not the last any more; insert before it", f.GetName())
			}
		}
		last := list[len(list)-1]
		if name := typeOf(last); !terminal(name) && !mayEnd(name) {
			return fmt.Errorf("filter %s is the last, but hands requests on; keep the one that ends the list behind it", last.GetName())
		}
		return nil
	}
}

// typeOf is the type of a filter's configuration, "" if it comes from elsewhere.
func typeOf(f extension) protoreflect.FullName { return f.GetTypedConfig().MessageName() }

func isRouter(n protoreflect.FullName) bool {
	return n == "envoy.extensions.filters.http.router.v3.Router"
}

// isTerminalNetwork reports whether a network filter is always the last one.
func isTerminalNetwork(n protoreflect.FullName) bool {
	rest, ok := strings.CutPrefix(string(n), "envoy.extensions.filters.network.")
	if !ok {
		return false
	}
	switch kind, _, _ := strings.Cut(rest, "."); kind {
	case "http_connection_manager", "tcp_proxy", "redis_proxy", "thrift_proxy", "dubbo_proxy", "generic_proxy", "echo", "direct_response":
		return true
	}
	return false
}

// mayEnd reports whether a filter may be the last one: what is not known here, and
// what is programmed by users.
func mayEnd(n protoreflect.FullName) bool {
	switch {
	case n == "":
		return false
	case strings.Contains(string(n), "dynamic_modules"), strings.Contains(string(n), "golang"), n == "udpa.type.v1.TypedStruct", n == "xds.type.v3.TypedStruct":
		return true
	}
	_, err := protoregistry.GlobalTypes.FindMessageByName(n)
	return err != nil
}
