package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/client"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds/build"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

// answer is what one proxy is told for one service port: lines that say what is
// dialled or not, each with the reason.
type answer struct {
	proxy, title string
	// place is where the proxy is; it does not tell answers apart.
	place string
	lines []string
}

// answerFor puts together what a proxy heard on its stream with the reasons
// that the control plane gives for it. One endpoint on its own weighs scale.
func answerFor(ctx context.Context, c *client.Client, p *demoProxy, connection string, host mesh.Hostname, port uint16, scale uint32) (answer, error) {
	out := answer{proxy: string(p.workload.Cluster) + "  " + p.id(), title: fmt.Sprintf("%s:%d", shortName(host), port)}
	x, err := c.Explain(ctx, connection, string(host), port, match.Request{})
	if err != nil {
		return out, fmt.Errorf("explain %s to proxy %s in cluster %s: %w", out.title, p.id(), p.workload.Cluster, err)
	}
	out.place = "network " + cmp.Or(string(x.Proxy.Network), "not known")
	list, ok := p.dials(build.UpstreamName(build.DirectionOutbound, port, "", host))
	switch {
	case !ok:
		out.lines = append(out.lines, "✕ the proxy does not know the host")
	case len(list) == 0:
		out.lines = append(out.lines, "✕ nothing to dial")
	}
	for _, d := range list {
		out.lines = append(out.lines, fmt.Sprintf("→ %-21s weight %-4.4g %s", d.addr, float64(d.weight)/float64(max(scale, 1)), reason(x, d.addr.String())))
	}
	for _, k := range x.Candidates {
		if !k.Kept {
			out.lines = append(out.lines, fmt.Sprintf("✕ %-21s not sent    %s: %s", k.Address, where(k), k.Reason))
		}
	}
	return out, nil
}

// reason says why an address is dialled.
func reason(x client.Explanation, address string) string {
	var behind []string
	for _, k := range x.Candidates {
		switch {
		case k.Kept && k.Address == address && len(k.Gateways) == 0:
			return where(k) + ": " + k.Reason
		case k.Kept && slices.Contains(k.Gateways, address):
			behind = append(behind, where(k))
		}
	}
	if len(behind) == 0 {
		return "no longer explained: it changes just now"
	}
	slices.Sort(behind)
	return fmt.Sprintf("gateway for %s: %s", count(len(behind), "endpoint", "endpoints"), strings.Join(behind, ", "))
}

func where(k client.Candidate) string {
	_, pod, found := strings.Cut(k.Workload, "/")
	if !found {
		pod = cmp.Or(k.Workload, k.Address)
	}
	return string(k.Cluster) + "/" + pod
}

func shortName(h mesh.Hostname) string {
	name, _, _ := strings.Cut(string(h), ".")
	return name
}

// screen prints answers, and later what is different about them.
type screen struct {
	w      io.Writer
	colour bool
	last   []answer
	begun  bool
}

func newScreen(w io.Writer, getenv func(string) string) *screen {
	return &screen{w: w, colour: isTerminal(w) && getenv("NO_COLOR") == ""}
}

// ANSI colours.
const (
	bold  = "1"
	red   = "31"
	green = "32"
	amber = "33"
)

func (s *screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// show prints everything the first time, then what has changed.
func (s *screen) show(now time.Time, list []answer) error {
	defer func() { s.last, s.begun = list, true }()
	var text string
	if s.begun {
		text = s.difference(now, list)
	} else {
		text = s.all(list)
	}
	if _, err := io.WriteString(s.w, text); err != nil {
		return fmt.Errorf("print answers: %w", err)
	}
	return nil
}

func (s *screen) all(list []answer) string {
	var b strings.Builder
	proxy := ""
	for _, a := range list {
		if a.proxy != proxy {
			proxy = a.proxy
			fmt.Fprintf(&b, "\n%s  %s\n", s.paint(bold, proxy), a.place)
		}
		fmt.Fprintf(&b, "  %s\n", a.title)
		for _, line := range a.lines {
			line = harmless(line)
			if strings.HasPrefix(line, "✕") {
				line = s.paint(amber, line)
			}
			fmt.Fprintf(&b, "    %s\n", line)
		}
	}
	return b.String()
}

// difference prints for every answer that changed the lines that went and came.
func (s *screen) difference(now time.Time, list []answer) string {
	var b strings.Builder
	before := map[string][]string{}
	for _, a := range s.last {
		before[a.key()] = a.lines
	}
	after := map[string]bool{}
	for _, a := range list {
		after[a.key()] = true
		s.lines(&b, a, minus(before[a.key()], a.lines), minus(a.lines, before[a.key()]))
	}
	for _, a := range s.last {
		if !after[a.key()] {
			s.lines(&b, a, a.lines, nil)
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return fmt.Sprintf("\n%s\n%s", s.paint(bold, now.Format("15:04:05.000")+"  the answer has changed"), b.String())
}

// key names the proxy and the port.
func (a answer) key() string { return strings.TrimSpace(a.proxy + "  " + a.title) }

func (s *screen) lines(b *strings.Builder, a answer, gone, come []string) {
	if len(gone)+len(come) == 0 {
		return
	}
	fmt.Fprintf(b, "  %s\n", a.key())
	for _, l := range gone {
		fmt.Fprintf(b, "    %s\n", s.paint(red, "- "+harmless(l)))
	}
	for _, l := range come {
		fmt.Fprintf(b, "    %s\n", s.paint(green, "+ "+harmless(l)))
	}
}

// minus lists the lines of a that are not in b.
func minus(a, b []string) []string {
	var out []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, line)
		}
	}
	return out
}
