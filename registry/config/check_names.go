package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// maxHost bounds host names, in characters.
const maxHost = 255

// host checks a fully qualified host name. A wildcard stands for, or begins, the
// first label: "*", "*.example.com", "*-api.example.com".
func (c *checker) host(h string, wildcard bool) {
	if why := badHost(h, wildcard); why != "" {
		c.failf("%q is not a host name: %s", clip(h), why)
	}
}

func badHost(h string, wildcard bool) string {
	name := strings.TrimSuffix(h, ".")
	if name == "*" && wildcard {
		return ""
	}
	if why := badLabels(name, wildcard); why != "" {
		return why
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	if _, err := strconv.Atoi(last); err == nil && name == h && (!wildcard || last != name) {
		return fmt.Sprintf("its last label %q is a number; an address is not a name", last)
	}
	return ""
}

// badLabels says what is wrong with the labels of a name, "" if nothing is.
func badLabels(name string, wildcard bool) string {
	switch {
	case name == "":
		return "it is empty"
	case len(name) > maxHost:
		return fmt.Sprintf("it is longer than %d characters", maxHost)
	}
	for i, l := range strings.Split(name, ".") {
		if i == 0 && wildcard && strings.HasPrefix(l, "*") {
			if l = strings.TrimPrefix(strings.TrimPrefix(l, "*-"), "*"); l == "" && !strings.HasPrefix(name, "*-") {
				continue
			}
		}
		switch {
		case l == "":
			return "it has an empty label; remove the dot"
		case strings.Contains(l, "*"):
			return "a wildcard may only stand at the start, as in *.example.com"
		case !isLabel(l):
			return fmt.Sprintf("label %q must be letters, digits and inner hyphens, at most 63", clip(l))
		}
	}
	return ""
}

// isLabel reports whether a name is one DNS label, of either case.
func isLabel(l string) bool {
	const most = 63
	if l == "" || len(l) > most || l[0] == '-' || l[len(l)-1] == '-' {
		return false
	}
	for i := range len(l) {
		if !isAlphanumeric(rune(l[i])) && l[i] != '-' {
			return false
		}
	}
	return true
}

// labelled checks a name that is made of labels, be they numbers.
func (c *checker) labelled(name string) {
	if why := badLabels(strings.TrimSuffix(name, "."), false); why != "" {
		c.failf("%q is not a domain: %s", clip(name), why)
	}
}

// label checks a name of one label.
func (c *checker) label(name, what string) {
	if !isLabel(name) {
		c.failf("%q is not the name of %s; use letters, digits and inner hyphens, at most 63", clip(name), what)
	}
}

// scopedHost checks the form NAMESPACE/HOST of gateways and sidecars: no short
// names, and a wildcard only for the whole first label.
func (c *checker) scopedHost(ns, host string, addresses bool, signs ...string) {
	if !slices.Contains(signs, ns) {
		c.someNamespace(ns)
	}
	if addresses && isAddress(host) {
		return
	}
	switch why := badHost(host, true); {
	case why != "":
		c.failf("%q is not a host name: %s", clip(host), why)
	case host != "*" && !strings.Contains(host, "."):
		c.failf("%q is a short name; write the host in full, as in %s.default.svc.cluster.local", clip(host), clip(host))
	case strings.HasPrefix(host, "*") && len(host) > 1 && !strings.HasPrefix(host, "*."):
		c.failf("%q has a wildcard for a part of a label; use one for the whole label, as in *.example.com", clip(host))
	}
}

// gatewayNames checks a list of gateways: "mesh", NAME, NAMESPACE/NAME or, of
// old, a host name. As in Istio, what follows a name without namespace is not
// refused: that a gateway does not exist is no reason to drop the other routes.
func (c *checker) gatewayNames(list []string) {
	rest := false
	for i, g := range list {
		at := c.element(i)
		complain := at.failf
		if rest {
			complain = at.warnf
		}
		ns, name, ok := strings.Cut(g, "/")
		switch why := badHost(g, false); {
		case ok && (!isLabel(ns) || !isLabel(name)):
			complain("%q is not a gateway; write NAMESPACE/NAME", clip(g))
		case ok:
		case why != "":
			complain("%q is not a gateway: %s", clip(g), why)
		case strings.Contains(g, "."):
			parts := strings.Split(g, ".")
			at.warnf("%q names a gateway in an old form; write %s/%s", clip(g), parts[1], parts[0])
		}
		rest = rest || !ok
	}
}

// isAddress reports whether a text is an IP address.
func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// address checks an IP or a host name.
func (c *checker) address(a string) {
	if !isAddress(a) {
		c.host(a, false)
	}
}

// ip checks an IP address.
func (c *checker) ip(a string) {
	if !isAddress(a) {
		c.failf("%q is not an IP address", clip(a))
	}
}

// subnet checks an IP address or a CIDR.
func (c *checker) subnet(s string) {
	if !strings.Contains(s, "/") {
		c.ip(s)
		return
	}
	if _, err := netip.ParsePrefix(s); err != nil {
		c.failf("%q is not a CIDR; write it as in 10.4.0.0/16", clip(s))
	}
}

// unixPrefix marks the address of a Unix socket.
const unixPrefix = "unix://"

// unixSocket checks what follows unix://: an absolute path, or @ and a name.
func (c *checker) unixSocket(address string) {
	p := strings.TrimPrefix(address, unixPrefix)
	if strings.HasPrefix(p, "@") {
		return
	}
	if !strings.HasPrefix(p, "/") || strings.HasSuffix(p, "/") {
		c.failf("%q is not the path of a socket; write unix:///PATH, or unix://@NAME", clip(address))
	}
}

// hostPort checks "HOST:PORT" with an IP (IPv6 in brackets) or a name as host.
func (c *checker) hostPort(s string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		c.failf("%q has no port; use HOST:PORT", clip(s))
		return
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 32)
	if err != nil {
		c.failf("%q has no port number after the colon; use HOST:PORT", clip(s))
		return
	}
	c.port(int64(n))
	c.address(strings.TrimSuffix(strings.TrimPrefix(s[:i], "["), "]"))
}

// namespaceName checks the name of a namespace.
func (c *checker) namespaceName(ns string) {
	if len(validation.IsDNS1123Label(ns)) > 0 {
		c.failf("%q is not a namespace; use lower-case letters, digits and inner hyphens, at most 63", clip(ns))
	}
}

// someNamespace checks a namespace that need not exist. As in Istio, capitals
// pass, though no namespace has any.
func (c *checker) someNamespace(ns string) {
	if !isLabel(ns) {
		c.namespaceName(ns)
	}
}

// exportTo checks a list of namespaces and the signs for all, own and none.
func (c *checker) exportTo(list []string) {
	there := seen{}
	for i, e := range list {
		at := c.element(i)
		switch e {
		case "*", ".", "~":
			if len(list) > 1 && e != "." {
				at.failf("%q stands for itself; remove it or the other entries", e)
			}
		default:
			at.someNamespace(e)
		}
		if there.twice(e) {
			at.failf("%q is there twice; remove one", clip(e))
		}
	}
}

// exportedTo checks the exportTo of an object. Only a service may be hidden from
// everybody.
func (c *checker) exportedTo(list []string, service bool) {
	c.exportTo(list)
	own := c.namespace != "" && slices.Contains(list, c.namespace)
	for i, e := range list {
		switch {
		case e == "~" && !service:
			c.element(i).failf(`"~" is for ServiceEntries only; use "." for the own namespace`)
		case e == "." && own:
			c.element(i).failf(`"." is %s, which is there too; remove one`, clip(c.namespace))
		}
	}
}

// labels checks labels that workloads have or are chosen by: an entry that no
// label can match is a mistake.
func (c *checker) labels(field string, sel map[string]string) {
	for _, k := range sortedKeys(sel) {
		if len(validation.IsQualifiedName(k)) > 0 {
			c.key(field, k).failf("%q is not a label key", clip(k))
		}
		if len(validation.IsValidLabelValue(sel[k])) > 0 {
			c.key(field, k).failf("%q is not a label value; no workload can have it", clip(sel[k]))
		}
	}
}
