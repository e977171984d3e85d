package build

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Text renders the explanation for a terminal.
func (x Explanation) Text() string {
	var b strings.Builder
	p := x.Proxy
	fmt.Fprintf(&b, "Proxy     %s in cluster %s, network %s, namespace %s, %s\n", p.Kind, p.Cluster, orUnknown(p.Network), p.Namespace, p.Families)
	if p.NetworkView != "" {
		fmt.Fprintf(&b, "          sees the networks %s only\n", p.NetworkView)
	}
	fmt.Fprintf(&b, "Asks for  %s port %d\n", x.Host, x.Port)
	if s := x.Service; s != nil {
		fmt.Fprintf(&b, "Service   in %s, led by %s; port %q, %s\n", join(s.Clusters), s.Lead, s.PortName, s.Protocol)
		fmt.Fprintf(&b, "Upstream  %s\n", x.Upstream)
		if x.Rule != "" {
			fmt.Fprintf(&b, "Rule      DestinationRule %s\n", x.Rule)
		}
	}
	for _, n := range x.Notes {
		fmt.Fprintf(&b, "Note      %s\n", n)
	}
	for _, c := range x.Conflicts {
		fmt.Fprintf(&b, "Conflict  %s: %s wins over %s: %s\n", c.Field, c.Winner, c.Loser, c.Detail)
	}
	x.table(&b)
	return b.String()
}

func (x Explanation) table(b *strings.Builder) {
	if len(x.Candidates) > 0 {
		b.WriteString("\n")
		w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0) // over a strings.Builder, which takes everything
		_, _ = fmt.Fprintln(w, "ENDPOINT\tCLUSTER\tNETWORK\tHEALTH\tMTLS\tWEIGHT\tVERDICT\tWHY")
		for _, e := range x.Candidates {
			weight := "-"
			if e.Kept {
				weight = fmt.Sprint(e.Weight)
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Address, e.Cluster, orUnknown(e.Network), e.Health, yesNo(e.MTLS), weight, e.Verdict, e.Reason)
		}
		_ = w.Flush()
	}
	if len(x.Dialled) > 0 {
		b.WriteString("\n")
		w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "DIALS\tLOCALITY\tHEALTH\tWEIGHT\tSHARE")
		for _, a := range x.Dialled {
			kind := ""
			if a.Gateway {
				kind = " (gateway)"
			}
			locality := a.Locality
			if locality == "" {
				locality = "-"
			}
			_, _ = fmt.Fprintf(w, "%s%s\t%s\t%s\t%d\t%.1f %%\n", a.Address, kind, locality, a.Health, a.Weight, a.Percent)
		}
		_ = w.Flush()
	}
}

func orUnknown(n mesh.NetworkID) string {
	if n == "" {
		return "(unknown)"
	}
	return string(n)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func join(ids []mesh.ClusterID) string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return strings.Join(out, ", ")
}

// drainNotes tells what drains have to do with a selection.
func drainNotes(in Inputs, s Selection) []string {
	w := in.Catalog.Settings.Weights
	if w.Empty() {
		return nil
	}
	var out []string
	if s.Undrained {
		out = append(out, "drains are not heeded here: no endpoint outside the drained clusters and networks is ready")
	}
	seen := map[string]struct{}{}
	for _, c := range s.Candidates {
		id, network := c.Endpoint.Workload.Cluster, c.Endpoint.Network
		n := w.Of(id, network)
		if n == 0 || n == mesh.FullWeight {
			continue
		}
		text := fmt.Sprintf("endpoints of cluster %s on network %s get %d %% of their share%s", id, orUnknown(network), n, weightSources(w, id, network))
		if _, ok := seen[text]; !ok {
			seen[text] = struct{}{}
			out = append(out, text)
		}
	}
	return out
}

// weightSources says what gives endpoints of a cluster on a network less than all.
func weightSources(w mesh.Weights, c mesh.ClusterID, n mesh.NetworkID) string {
	var parts []string
	if own := w.Cluster(c); own.Percent != mesh.FullWeight {
		parts = append(parts, fmt.Sprintf("cluster %d %% by %s", own.Percent, own.From))
	}
	if own := w.Network(n); own.Percent != mesh.FullWeight {
		parts = append(parts, fmt.Sprintf("network %d %% by %s", own.Percent, own.From))
	}
	return ": " + strings.Join(parts, ", ")
}
