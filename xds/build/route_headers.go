package build

import (
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// headerChanges is what is done to the headers of requests and responses.
type headerChanges struct {
	addRequest, addResponse       []*corev3.HeaderValueOption
	removeRequest, removeResponse []string
	// authority replaces the host of requests; "" leaves it.
	authority string
}

// readHeaders translates header operations. What is set goes before what is
// added. Pseudo headers are not for changing; the authority is rewritten.
func readHeaders(h *networking.Headers) headerChanges {
	req, resp := h.GetRequest(), h.GetResponse()
	setRequest, authority := headerOptions(req.GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	addRequest, added := headerOptions(req.GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	setResponse, _ := headerOptions(resp.GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	addResponse, _ := headerOptions(resp.GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	if authority == "" {
		authority = added
	}
	return headerChanges{
		addRequest: append(setRequest, addRequest...), addResponse: append(setResponse, addResponse...),
		removeRequest: removable(req.GetRemove()), removeResponse: removable(resp.GetRemove()),
		authority: authority,
	}
}

func headerOptions(values map[string]string, how corev3.HeaderValueOption_HeaderAppendAction) (out []*corev3.HeaderValueOption, authority string) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		switch {
		case strings.EqualFold(key, headerAuthority), strings.EqualFold(key, "host"):
			authority = values[key]
		case strings.HasPrefix(key, ":"):
		default:
			out = append(out, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: key, Value: values[key]}, AppendAction: how})
		}
	}
	return out, authority
}

func removable(names []string) []string {
	var out []string
	for _, n := range names {
		if !strings.HasPrefix(n, ":") && !strings.EqualFold(n, "host") {
			out = append(out, n)
		}
	}
	return out
}
