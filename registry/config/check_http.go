package config

import (
	"net/http"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"

	networking "istio.io/api/networking/v1alpha3"
)

// Bounds of regular expressions. maxProgram is what proxies are configured to
// take, in instructions.
const (
	maxRegex   = 1024
	maxProgram = 32768
)

// regex checks a regular expression in the syntax of RE2. It is parsed but not
// compiled: that finds all faults, and a short text cannot cost much.
func (c *checker) regex(re string) {
	switch {
	case re == "":
		c.failf("is empty; give a regular expression")
		return
	case len(re) > maxRegex:
		c.failf("is %d characters long; a regular expression may have %d", len(re), maxRegex)
		return
	}
	tree, err := syntax.Parse(re, syntax.Perl)
	if err != nil {
		c.failf("%q is not a regular expression: %s; use the syntax of RE2", clip(re), strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return
	}
	if n := programSize(tree); n > maxProgram {
		c.warnf("%q is about %d instructions when compiled; proxies refuse more than %d, use smaller repeat counts", clip(re), n, maxProgram)
	}
}

// programSize estimates how many instructions an expression compiles to.
func programSize(re *syntax.Regexp) int {
	n := 1
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpCharClass:
		n = len(re.Rune) / 2
	}
	for _, sub := range re.Sub {
		n += programSize(sub)
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max, 1)
	}
	return min(n, 1<<30)
}

// stringMatch checks one way to match a text. An empty prefix matches nothing in
// Envoy, except in a path.
func (c *checker) stringMatch(m *networking.StringMatch, emptyPrefix bool) {
	switch x := m.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		if x.Prefix == "" && !emptyPrefix {
			c.at("prefix").failf("is empty; remove the match to match everything")
		}
	case *networking.StringMatch_Regex:
		c.at("regex").regex(x.Regex)
	}
}

// headerName checks the name of a header as HTTP has it.
func (c *checker) headerName(name string) {
	if name == "" {
		c.failf("is empty; name the header")
	} else if !isToken(name) {
		c.failf("%q is not a header name; use letters, digits and hyphens", clip(name))
	}
}

// isToken reports whether a text is a token of HTTP: a header name or a method.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !isAlphanumeric(r) && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// isPlainHeader reports whether a name consists of letters, digits, - and _.
func isPlainHeader(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !isAlphanumeric(r) && r != '-' && r != '_' })
}

func isAlphanumeric(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// isClaim reports whether a header of a match is a claim of the request's token.
func isClaim(name string) bool {
	const prefix = "@request.auth.claims"
	rest, ok := strings.CutPrefix(strings.ToLower(name), prefix)
	return ok && len(rest) > 1 && (rest[0] == '.' || rest[0] == '[' && strings.HasSuffix(rest, "]"))
}

// matchedHeader checks the name of a header that requests are matched by: also a
// pseudo header or a claim.
func (c *checker) matchedHeader(name string) {
	if isClaim(name) || slices.Contains([]string{":method", ":scheme", ":authority", ":path", ":status"}, name) {
		return
	}
	c.headerName(name)
}

func isAuthority(name string) bool {
	return strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")
}

// changedHeader checks the name of a header that is added, set or removed.
func (c *checker) changedHeader(name string, authority bool) {
	switch {
	case name == "":
		c.failf("is empty; name the header")
	case isAuthority(name) && authority:
	case isAuthority(name):
		c.failf("%q cannot be changed here; use rewrite.authority", clip(name))
	case strings.HasPrefix(name, ":"):
		c.failf("%q begins with a colon; such headers cannot be changed", clip(name))
	}
}

// headerValue checks a value in which Envoy replaces %COMMAND% and %COMMAND(...)%.
func (c *checker) headerValue(v string) {
	if strings.ContainsFunc(v, func(r rune) bool { return r != '\t' && r < ' ' || r == 0x7f }) {
		c.failf("%q has control characters; remove them", clip(v))
	} else if !utf8.ValidString(v) {
		c.failf("is not UTF-8")
	} else if why := badCommands(v); why != "" {
		c.failf("%q %s", clip(v), why)
	}
}

// badCommands says what is wrong with the commands of a header's value.
func badCommands(v string) string {
	for {
		i := strings.IndexByte(v, '%')
		if i < 0 {
			return ""
		}
		v = v[i+1:]
		if rest, ok := strings.CutPrefix(v, "%"); ok {
			v = rest
			continue
		}
		end, why := commandEnd(v)
		if why != "" {
			return why
		}
		v = v[end:]
	}
}

const openCommand = "has a % without its partner; write %% for the sign itself"

// commandEnd finds the end of a command, behind its closing sign.
func commandEnd(v string) (end int, why string) {
	i := strings.IndexAny(v, "%(")
	if i < 0 {
		return 0, openCommand
	}
	if v[i] == '%' {
		return i + 1, ""
	}
	rest := strings.TrimLeft(v[i+1:], " ")
	var n int
	if strings.HasPrefix(rest, "[") {
		if n, why = argumentList(rest[1:]); why != "" {
			return 0, why
		}
		n++
	} else if n = closing(rest, ')'); n < 0 {
		return 0, openCommand
	}
	tail := strings.TrimLeft(rest[n+1:], " ")
	if !strings.HasPrefix(tail, "%") {
		return 0, "has something between ) and %; remove it"
	}
	return len(v) - len(tail) + 1, ""
}

// argumentList reads "a", "b"] and finds the closing parenthesis behind it.
func argumentList(s string) (int, string) {
	const bad = `has arguments that are not of the form ["a", "b"]`
	at := 0
	skip := func() {
		for at < len(s) && s[at] == ' ' {
			at++
		}
	}
	for {
		if skip(); at >= len(s) || s[at] != '"' {
			return 0, bad
		}
		end := closing(s[at+1:], '"')
		if end < 0 {
			return 0, bad
		}
		at += end + 2
		if skip(); at >= len(s) {
			return 0, bad
		}
		if s[at] == ']' {
			break
		}
		if s[at] != ',' {
			return 0, bad
		}
		at++
	}
	at++
	if skip(); at >= len(s) || s[at] != ')' {
		return 0, bad
	}
	return at, ""
}

// closing finds a sign that no backslash precedes, -1 if there is none.
func closing(s string, sign byte) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case sign:
			return i
		}
	}
	return -1
}

// fraction checks a percentage with decimals. What lies between 0 and 0.0001 is
// finer than proxies can tell.
func (c *checker) fraction(p *networking.Percent) {
	if v := p.GetValue(); !(v >= 0 && v <= 100) || v > 0 && v < 0.0001 {
		c.at("value").failf("%v is not a percentage; use 0, or 0.0001-100", v)
	}
}

// status checks an HTTP status that a proxy answers with.
func (c *checker) status(n int64) {
	if n < 200 || n > 600 {
		c.failf("%d is not a status to answer with; use 200-599", n)
	}
}

func isStatus(n int) bool { return http.StatusText(n) != "" }
