package match

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDomains(t *testing.T) {
	c := &routev3.RouteConfiguration{IgnorePortInHostMatching: true}
	for _, d := range []string{"*", "*.com", "*.example.com", "www.example.com", "www.*", "[2001:db8::1]"} {
		c.VirtualHosts = append(c.VirtualHosts, &routev3.VirtualHost{Name: d, Domains: []string{d}})
	}
	for host, want := range map[string]string{
		"WWW.example.com:8080": "www.example.com", "a.example.com": "*.example.com", "example.com": "*.com",
		"www.example.org": "www.*", "example.org": "*", "www.com": "*.com", "[2001:db8::1]:80": "[2001:db8::1]",
	} {
		require.Equal(t, want, VirtualHost(c, host).GetName(), host)
	}
	c.VirtualHosts = c.VirtualHosts[2:]
	require.Nil(t, VirtualHost(c, "nowhere"))
}

func TestMatches(t *testing.T) {
	exact := func(s string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
	}
	header := func(name, v string, invert bool) *routev3.HeaderMatcher {
		return &routev3.HeaderMatcher{Name: name, InvertMatch: invert, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exact(v)}}
	}
	prefix := &routev3.RouteMatch_Prefix{Prefix: "/a"}
	r := &Request{Host: "h", Path: "/a/b?x=1", Headers: map[string]string{"user": "jo", "n": "7"}}
	for name, c := range map[string]struct {
		m    *routev3.RouteMatch
		want bool
	}{
		"prefix":              {&routev3.RouteMatch{PathSpecifier: prefix}, true},
		"path":                {&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/A/B"}, CaseSensitive: wrapperspb.Bool(false)}, true},
		"path by case":        {&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/A/B"}}, false},
		"separated":           {&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/a"}}, true},
		"separated elsewhere": {&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/a/"}}, false},
		"regex is anchored":   {&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "/a"}}}, false},
		"header":              {&routev3.RouteMatch{PathSpecifier: prefix, Headers: []*routev3.HeaderMatcher{header("User", "jo", false)}}, true},
		"header inverted":     {&routev3.RouteMatch{PathSpecifier: prefix, Headers: []*routev3.HeaderMatcher{header("user", "jo", true)}}, false},
		"missing inverted":    {&routev3.RouteMatch{PathSpecifier: prefix, Headers: []*routev3.HeaderMatcher{header("other", "jo", true)}}, true},
		"method":              {&routev3.RouteMatch{PathSpecifier: prefix, Headers: []*routev3.HeaderMatcher{header(":method", "GET", false)}}, true},
		"query": {&routev3.RouteMatch{PathSpecifier: prefix, QueryParameters: []*routev3.QueryParameterMatcher{{Name: "x",
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: exact("1")}}}}, true},
		"gRPC": {&routev3.RouteMatch{PathSpecifier: prefix, Grpc: &routev3.RouteMatch_GrpcRouteMatchOptions{}}, false},
	} {
		why, err := Route(c.m, r)
		require.NoError(t, err, name)
		require.Equal(t, c.want, why == "", name+": "+why)
	}
	_, err := Route(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "("}}}, r)
	require.Error(t, err)
}
