package config

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func authorizationPolicyKind() descriptor {
	kind, versions := securityKind(mesh.KindAuthorizationPolicy, "authorizationpolicies")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &security.AuthorizationPolicy{} },
		typed:    typedAs(func(o *securityv1.AuthorizationPolicy) proto.Message { return &o.Spec }),
		validate: checks(validateAuthorizationPolicy),
	}
}

func validateAuthorizationPolicy(c *checker, p *security.AuthorizationPolicy) {
	c.targets(p.GetSelector(), p.GetTargetRef(), p.GetTargetRefs())
	action := p.GetAction()
	custom := action == security.AuthorizationPolicy_CUSTOM
	switch {
	case len(p.GetRules()) == 0 && (custom || action == security.AuthorizationPolicy_DENY):
		c.at("rules").failf("is empty, so action %s never applies; add an empty rule {} for all requests", action)
	case custom && p.GetProvider().GetName() == "":
		c.at("provider.name").failf("is empty; name a provider of meshConfig.extensionProviders")
	case !custom && p.GetProvider() != nil:
		c.at("provider").failf("is set with action %s; remove it or use action CUSTOM", action)
	}
	for i, r := range p.GetRules() {
		at := c.index("rules", i)
		for j, f := range r.GetFrom() {
			validateSource(at.index("from", j).at("source"), f.GetSource(), custom)
		}
		for j, t := range r.GetTo() {
			validateOperation(at.index("to", j).at("operation"), t.GetOperation())
		}
		for j, w := range r.GetWhen() {
			validateCondition(at.index("when", j), w, custom)
		}
		if action == security.AuthorizationPolicy_DENY && httpOnly(r) {
			at.warnf("looks at attributes of HTTP only, so it denies everything on TCP ports; name the ports that it is for")
		}
	}
}

// httpOnly reports whether a rule has nothing that a TCP connection could fail.
func httpOnly(r *security.Rule) bool {
	from, to, l4From, l4To := false, false, false, false
	for _, f := range r.GetFrom() {
		s := f.GetSource()
		from = from || s != nil
		l4From = l4From || len(s.GetPrincipals())+len(s.GetNotPrincipals())+len(s.GetNamespaces())+len(s.GetNotNamespaces())+
			len(s.GetServiceAccounts())+len(s.GetNotServiceAccounts())+len(s.GetIpBlocks())+len(s.GetNotIpBlocks())+
			len(s.GetRemoteIpBlocks())+len(s.GetNotRemoteIpBlocks())+len(s.GetTrustDomains())+len(s.GetNotTrustDomains()) > 0
	}
	for _, t := range r.GetTo() {
		to = to || t.GetOperation() != nil
		l4To = l4To || len(t.GetOperation().GetPorts())+len(t.GetOperation().GetNotPorts()) > 0
	}
	return from && !to && !l4From || to && !l4To
}

// values is one list of a source or operation.
type values struct {
	field string
	list  []string
	check func(*checker, string)
}

// lists checks lists of values, of which one at least has to have any.
func (c *checker) lists(all []values, what string) {
	empty := true
	for _, v := range all {
		empty = empty && len(v.list) == 0
		for i, s := range v.list {
			at := c.index(v.field, i)
			switch {
			case s == "":
				at.failf("is empty; remove it")
			case v.check != nil:
				v.check(at, s)
			}
		}
	}
	if empty {
		c.failf("says nothing about %s; give at least one list", what)
	}
}

func validateSource(c *checker, s *security.Source, custom bool) {
	if s == nil {
		c.failf("is missing; say who the requests come from")
		return
	}
	account := (*checker).serviceAccount
	subnet := (*checker).subnet
	identity := []values{
		{"principals", s.GetPrincipals(), nil}, {"notPrincipals", s.GetNotPrincipals(), nil},
		{"requestPrincipals", s.GetRequestPrincipals(), nil}, {"notRequestPrincipals", s.GetNotRequestPrincipals(), nil},
		{"namespaces", s.GetNamespaces(), nil}, {"notNamespaces", s.GetNotNamespaces(), nil},
		{"serviceAccounts", s.GetServiceAccounts(), account}, {"notServiceAccounts", s.GetNotServiceAccounts(), account},
	}
	if custom {
		for _, v := range identity {
			if len(v.list) > 0 {
				c.at(v.field).failf("does not work with action CUSTOM: the provider is asked before identities are known; remove it")
			}
		}
	}
	c.lists(append(identity,
		values{"trustDomains", s.GetTrustDomains(), nil}, values{"notTrustDomains", s.GetNotTrustDomains(), nil},
		values{"ipBlocks", s.GetIpBlocks(), subnet}, values{"notIpBlocks", s.GetNotIpBlocks(), subnet},
		values{"remoteIpBlocks", s.GetRemoteIpBlocks(), subnet}, values{"notRemoteIpBlocks", s.GetNotRemoteIpBlocks(), subnet},
	), "the source")
	if len(s.GetServiceAccounts())+len(s.GetNotServiceAccounts()) > 0 &&
		len(s.GetPrincipals())+len(s.GetNotPrincipals())+len(s.GetNamespaces())+len(s.GetNotNamespaces()) > 0 {
		c.at("serviceAccounts").failf("is set beside principals or namespaces, which say the same; keep one")
	}
}

// serviceAccount checks the form [NAMESPACE/]NAME.
func (c *checker) serviceAccount(s string) {
	const most = 320
	ns, name, both := strings.Cut(s, "/")
	switch {
	case strings.Contains(s, "*"):
		c.failf("%q has a wildcard; write NAMESPACE/NAME or NAME", clip(s))
	case len(s) > most:
		c.failf("is longer than %d characters", most)
	case both && (ns == "" || name == "" || strings.Contains(name, "/")):
		c.failf("%q is not a service account; write NAMESPACE/NAME or NAME", clip(s))
	}
}

func validateOperation(c *checker, o *security.Operation) {
	if o == nil {
		c.failf("is missing; say what is asked for")
		return
	}
	c.lists([]values{
		{"hosts", o.GetHosts(), nil}, {"notHosts", o.GetNotHosts(), nil},
		{"ports", o.GetPorts(), (*checker).portText}, {"notPorts", o.GetNotPorts(), (*checker).portText},
		{"methods", o.GetMethods(), nil}, {"notMethods", o.GetNotMethods(), nil},
		{"paths", o.GetPaths(), (*checker).pathTemplate}, {"notPaths", o.GetNotPaths(), (*checker).pathTemplate},
	}, "the operation")
}

// portText checks a port that is written as text.
func (c *checker) portText(s string) {
	if n, err := strconv.ParseUint(s, 10, 32); err != nil || n > 65535 {
		c.failf("%q is not a port; use 0-65535", clip(s))
	}
}

// pathTemplate checks a path in which {*} stands for one segment and {**}, at
// the end, for any number.
func (c *checker) pathTemplate(path string) {
	const one, rest = "{*}", "{**}"
	template := strings.Contains(path, one) || strings.Contains(path, rest)
	last := false
	for _, s := range strings.Split(strings.Trim(path, "/"), "/") {
		switch {
		case (s == one || s == rest) && last:
			c.failf("%q has something that varies behind {**}; {**} may only be the last of those", clip(path))
			return
		case s == rest:
			last = true
		case s == one:
		case strings.ContainsAny(s, "{}"):
			c.failf("%q has braces around something else than * or **; use {*} for a segment, {**} for the rest", clip(path))
			return
		case template && !isPathSegment(s):
			c.failf("%q has segment %q, which cannot be in a template; write it without wildcards, special characters as %%XX", clip(path), clip(s))
			return
		}
	}
}

// isPathSegment reports whether a text is a segment of a path of RFC 3986.
func isPathSegment(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !isAlphanumeric(r) && !strings.ContainsRune("-._~%!$&'()+,;:@=", r)
	})
}

func validateCondition(c *checker, w *security.Condition, custom bool) {
	key := w.GetKey()
	at := c.at("key")
	if key == "" {
		at.failf("is empty; name the attribute")
		return
	}
	if len(w.GetValues())+len(w.GetNotValues()) == 0 {
		c.at("values").failf("is empty, as is notValues; give what %s is compared with", clip(key))
		return
	}
	if custom && (key == "source.namespace" || key == "source.serviceAccount" || key == "source.principal" || strings.HasPrefix(key, "request.auth.")) {
		at.failf("%q does not work with action CUSTOM: the provider is asked before identities are known; remove it", clip(key))
	}
	check, why := attribute(key)
	if why != "" {
		at.failf("%q %s", clip(key), why)
		return
	}
	c.lists([]values{{"values", w.GetValues(), check}, {"notValues", w.GetNotValues(), check}}, "the attribute")
}

// attribute returns how the values of an attribute are checked, or why there is
// no such attribute.
func attribute(key string) (check func(*checker, string), why string) {
	for _, prefix := range []string{"request.headers", "request.experimental.inline.headers", "request.auth.claims", "experimental.envoy.filters."} {
		if strings.HasPrefix(key, prefix) {
			if open := strings.IndexByte(key, '['); !strings.HasSuffix(key, "]") || open < 1 || open >= len(key)-2 {
				return nil, "needs a name in brackets, as in request.headers[x-user]"
			}
			return nil, ""
		}
	}
	switch key {
	case "source.ip", "remote.ip", "destination.ip":
		return (*checker).subnet, ""
	case "destination.port":
		return (*checker).portText, ""
	case "source.serviceAccount":
		return (*checker).serviceAccount, ""
	case "source.namespace", "source.principal", "source.trustDomain", "request.auth.principal", "request.auth.audiences", "request.auth.presenter", "connection.sni":
		return nil, ""
	case "destination.namespace", "destination.name", "destination.user":
		return nil, "is no longer an attribute; the policy's namespace and selector say what it is for"
	}
	if strings.HasPrefix(key, "destination.labels") {
		return nil, "is no longer an attribute; use the selector"
	}
	return nil, "is not an attribute"
}
