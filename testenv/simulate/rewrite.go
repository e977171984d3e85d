package simulate

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// location is where a redirect sends the client.
func location(a *routev3.RedirectAction, m *routev3.RouteMatch, r *Request) string {
	scheme, _ := r.Header(":scheme")
	host := r.Host
	if a.GetHttpsRedirect() {
		scheme = "https"
	}
	if s := a.GetSchemeRedirect(); s != "" {
		scheme = s
	}
	if h := a.GetHostRedirect(); h != "" {
		host = h
	}
	if p := a.GetPortRedirect(); p != 0 {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = net.JoinHostPort(host, strconv.Itoa(int(p)))
	}
	path, query, hasQuery := strings.Cut(r.Path, "?")
	switch p := a.GetPathRewriteSpecifier().(type) {
	case *routev3.RedirectAction_PathRedirect:
		if p.PathRedirect != "" { // else the path stays
			path, hasQuery = p.PathRedirect, hasQuery && !strings.Contains(p.PathRedirect, "?")
		}
	case *routev3.RedirectAction_PrefixRewrite:
		path = p.PrefixRewrite + path[len(prefixOf(m)):]
	case *routev3.RedirectAction_RegexRewrite:
		if re, err := regexp.Compile(p.RegexRewrite.GetPattern().GetRegex()); err == nil { // Envoy refuses others
			path = re.ReplaceAllString(path, groups(p.RegexRewrite.GetSubstitution()))
		}
	}
	if hasQuery && !a.GetStripQuery() {
		path += "?" + query
	}
	return scheme + "://" + host + path
}

func prefixOf(m *routev3.RouteMatch) string {
	if p := m.GetPathSeparatedPrefix(); p != "" {
		return p
	}
	if p := m.GetPath(); p != "" {
		return p
	}
	return m.GetPrefix()
}

// Rewritten is the path under which an upstream gets a request that a route took.
func Rewritten(a *Answer, r *Request) (string, error) {
	path, query, hasQuery := strings.Cut(r.Path, "?")
	switch {
	case a.Action.GetPrefixRewrite() != "":
		path = a.Action.GetPrefixRewrite() + path[len(prefixOf(a.Matched.GetMatch())):]
	case a.Action.GetRegexRewrite() != nil:
		re, err := regexp.Compile(a.Action.GetRegexRewrite().GetPattern().GetRegex())
		if err != nil {
			return "", fmt.Errorf("compile rewrite of %s: %w", a.Route, err)
		}
		path = re.ReplaceAllString(path, groups(a.Action.GetRegexRewrite().GetSubstitution()))
	}
	if hasQuery {
		path += "?" + query
	}
	return path, nil
}

// groups turns RE2's \1 into Go's ${1}.
func groups(s string) string { return regexp.MustCompile(`\\(\d)`).ReplaceAllString(s, "$${$1}") }
