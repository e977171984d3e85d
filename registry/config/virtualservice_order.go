package config

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// maxCompared bounds how many matches are compared with each other.
const maxCompared = 1000

// warnUnreachable warns of rules that never apply because an earlier one takes
// everything they would match. It finds what is plain: rules without a match,
// equal matches, and paths below an earlier one.
func warnUnreachable(c *checker, v *networking.VirtualService) {
	http := make([][]proto.Message, len(v.GetHttp()))
	for i, r := range v.GetHttp() {
		for _, m := range r.GetMatch() {
			if m.GetName() != "" {
				m = proto.Clone(m).(*networking.HTTPMatchRequest)
				m.Name = "" // says nothing of what is matched
			}
			http[i] = append(http[i], m)
		}
	}
	warnOrder(c, "http", http)
	tls := make([][]proto.Message, len(v.GetTls()))
	for i, r := range v.GetTls() {
		for _, m := range r.GetMatch() {
			tls[i] = append(tls[i], m)
		}
	}
	warnOrder(c, "tls", tls)
	tcp := make([][]proto.Message, len(v.GetTcp()))
	for i, r := range v.GetTcp() {
		for _, m := range r.GetMatch() {
			tcp[i] = append(tcp[i], m)
		}
	}
	warnOrder(c, "tcp", tcp)
}

// warnOrder looks at the rules of one protocol, each a list of matches.
func warnOrder(c *checker, field string, rules [][]proto.Message) {
	catchAll := -1
	seen := map[string]string{}
	type path struct{ prefix, at string }
	var paths []path
	for i, matches := range rules {
		at := c.index(field, i)
		if len(matches) == 0 || catchAll >= 0 {
			if catchAll >= 0 {
				if field == "tls" && len(matches) == 0 {
					continue // an error already
				}
				at.warnf("is never reached: %s[%d] matches everything; move it to the end", field, catchAll)
			} else {
				catchAll = i
			}
			continue
		}
		for j, m := range matches {
			if len(seen) >= maxCompared {
				return
			}
			key, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			if err != nil {
				continue // text that is no UTF-8 is found elsewhere
			}
			where := fmt.Sprintf("%s[%d].match[%d]", field, i, j)
			if first, ok := seen[string(key)]; ok {
				at.index("match", j).warnf("is the same as %s, which comes first; remove it", first)
				continue
			}
			seen[string(key)] = where
			uri := pathOf(m)
			for _, p := range paths {
				if uri != "" && strings.HasPrefix(uri, p.prefix) {
					at.index("match", j).warnf("is never reached: %s matches %q and all below it; move it further down", p.at, clip(p.prefix))
					break
				}
			}
			if prefix := onlyPath(m); prefix != "" {
				paths = append(paths, path{prefix, where})
			}
		}
	}
}

// pathOf returns the path that a match is for, or that all its paths begin with.
func pathOf(m proto.Message) string {
	h, ok := m.(*networking.HTTPMatchRequest)
	if !ok || h.GetIgnoreUriCase() {
		return ""
	}
	return h.GetUri().GetExact() + h.GetUri().GetPrefix()
}

// onlyPath returns the prefix of a match that looks at nothing but a prefix of
// the path.
func onlyPath(m proto.Message) string {
	h, ok := m.(*networking.HTTPMatchRequest)
	if !ok || h.GetUri().GetPrefix() == "" {
		return ""
	}
	if !proto.Equal(h, &networking.HTTPMatchRequest{Uri: h.GetUri(), StatPrefix: h.GetStatPrefix()}) {
		return ""
	}
	return h.GetUri().GetPrefix()
}
