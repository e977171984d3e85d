package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/client"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/xds/build"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

func (e environment) explainCommand() *cobra.Command {
	var address, format string
	var r match.Request
	var headers []string
	cmd := &cobra.Command{
		Use:   "explain PROXY HOST [PORT]",
		Short: "Say what a connected proxy dials for a host, and why",
		Long: `Say what a connected proxy dials for a host: every address with its share, and every
candidate endpoint of every cluster with the decision about it: direct, through a gateway, or
not sent and why.

PROXY is POD.NAMESPACE, or CLUSTER/POD.NAMESPACE where several clusters have a pod of that name.
HOST may be short: checkout, checkout.shop. Without PORT all ports of the service are explained.

For ports with HTTP it says which rule takes a request, GET / unless flags say otherwise, which
were tried before it, and which VirtualServices for the host have no part and why.`,
		Example: `  isthmus explain web-v1-0.shop checkout
  isthmus explain island/web-v1-0.shop billing.shop.svc.cluster.local 9000 -o json
  isthmus explain web-v1-0.shop reviews 9080 --path /api/v1 --header end-user:jason`,
		Args: between(2, 3, "PROXY, HOST and perhaps PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if r.Headers, err = readHeaders(headers); err != nil {
				return err
			}
			return e.explain(cmd.Context(), address, format, r, args)
		},
	}
	cmd.Flags().StringVar(&address, "address", client.DefaultAddress, "URL of the control plane's http or monitoring port")
	cmd.Flags().StringVarP(&format, "output", "o", formatTable, "table or json")
	cmd.Flags().StringVar(&r.Path, "path", "/", "path of the request whose route is explained, with its query")
	cmd.Flags().StringVar(&r.Method, "method", "GET", "method of the request")
	cmd.Flags().StringArrayVar(&headers, "header", nil, "NAME:VALUE of a header of the request; may be given several times")
	return cmd
}

// readHeaders reads headers as NAME:VALUE.
func readHeaders(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, h := range list {
		name, value, ok := strings.Cut(h, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return nil, usageError{fmt.Errorf("--header %q is not NAME:VALUE", h)}
		}
		out[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	return out, nil
}

func (e environment) explain(ctx context.Context, address, format string, r match.Request, args []string) error {
	if format != formatTable && format != formatJSON {
		return unknownFormat(format, formatTable, formatJSON)
	}
	c, err := client.New(address)
	if err != nil {
		return usageError{err}
	}
	defer c.Close()
	o, err := c.Overview(ctx)
	if err != nil {
		return err
	}
	connection, err := client.FindProxy(o, args[0])
	if err != nil {
		return err
	}
	host, err := findHost(o, args[0], args[1])
	if err != nil {
		return err
	}
	ports, err := portsToExplain(o, host, args[2:])
	if err != nil {
		return err
	}
	all := make([]client.Explanation, 0, len(ports))
	for _, p := range ports {
		x, err := c.Explain(ctx, connection, host, p, r)
		if err != nil {
			return err
		}
		all = append(all, x)
	}
	if format == formatJSON {
		if len(args) == 3 {
			return e.printJSON(all[0])
		}
		return e.printJSON(all)
	}
	for i, x := range all {
		if i > 0 {
			if err := e.print("\n"); err != nil {
				return err
			}
		}
		if err := printExplanation(e.out, args[0], x); err != nil {
			return err
		}
	}
	return nil
}

// findHost completes a host name as a client in the proxy's namespace would:
// first the name itself, then within the namespace, then anywhere if only one
// service is called so.
func findHost(o serve.Overview, proxy, host string) (string, error) {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	_, namespace, _ := strings.Cut(proxy, ".")
	var near, far []string
	for _, s := range o.Registry.Services {
		name := string(s.Hostname)
		switch {
		case name == host:
			return host, nil
		case strings.HasPrefix(name, host+"."+namespace+"."):
			near = append(near, name)
		case strings.HasPrefix(name, host+"."):
			far = append(far, name)
		}
	}
	if len(near) == 0 {
		near = far
	}
	switch len(near) {
	case 0:
		return "", fmt.Errorf("find host %q: no cluster has a service of that name; list them with: isthmus status -o wide", host)
	case 1:
		return near[0], nil
	}
	return "", fmt.Errorf("find host %q: it may be any of %s; name one in full", host, strings.Join(near, ", "))
}

// portsToExplain reads the port argument, or lists the ports of the service.
func portsToExplain(o serve.Overview, host string, args []string) ([]uint16, error) {
	if len(args) > 0 {
		n, err := strconv.ParseUint(args[0], 10, 16)
		if err != nil || n == 0 {
			return nil, usageError{fmt.Errorf("PORT %q is not a number from 1 to 65535", args[0])}
		}
		return []uint16{uint16(n)}, nil
	}
	var out []uint16
	for _, s := range o.Registry.Services {
		if string(s.Hostname) != host {
			continue
		}
		for _, p := range s.Ports {
			if n, ok := parsePort(p); ok {
				out = append(out, n)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("find ports of %s: the service has none; name the port to ask about", host)
	}
	return out, nil
}

// parsePort reads the number of a port as an overview writes it, name:80/HTTP.
func parsePort(text string) (uint16, bool) {
	number, _, _ := strings.Cut(text[strings.LastIndexByte(text, ':')+1:], "/")
	n, err := strconv.ParseUint(number, 10, 16)
	return uint16(n), err == nil && n > 0
}

func printExplanation(w io.Writer, proxy string, x client.Explanation) error {
	p := x.Proxy
	text := fmt.Sprintf("%s:%d for %s (%s in cluster %s, network %s)\n", x.Host, x.Port, proxy, p.Kind,
		cmp.Or(string(p.Cluster), "unknown"), cmp.Or(string(p.Network), "unknown"))
	for _, n := range x.Notes {
		text += "  note: " + harmless(n) + "\n"
	}
	for _, c := range x.Conflicts {
		text += fmt.Sprintf("  conflict: %s (%s counts, %s does not)\n", harmless(c.Field+": "+c.Detail), c.Winner, c.Loser)
	}
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("print explanation: %w", err)
	}
	if x.Route != nil {
		if err := printRoute(w, x.Route); err != nil {
			return err
		}
	}
	if err := dialledTable(x).print(w, "  "); err != nil {
		return err
	}
	if len(x.Candidates) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return fmt.Errorf("print explanation: %w", err)
	}
	return candidateTable(x).print(w, "  ")
}

// printRoute prints which rule takes a request.
func printRoute(w io.Writer, r *build.RouteExplanation) error {
	var b strings.Builder
	fmt.Fprintf(&b, "  %s %s: %s\n", harmless(r.Method), harmless(r.Path), harmless(r.Action))
	for _, s := range r.Upstreams {
		fmt.Fprintf(&b, "    %5.1f%% %s\n", s.Percent, s.Upstream)
	}
	for _, x := range r.Routes {
		from := cmp.Or(x.Rule, "the service itself")
		if x.Taken {
			fmt.Fprintf(&b, "  + %s (%s)\n", harmless(from), harmless(x.Match))
		} else {
			fmt.Fprintf(&b, "  - %s (%s): %s\n", harmless(from), harmless(x.Match), harmless(x.Reason))
		}
	}
	for _, x := range r.Lost {
		fmt.Fprintf(&b, "  - VirtualService %s has no part: %s\n", harmless(x.Rule), harmless(x.Reason))
	}
	if _, err := io.WriteString(w, b.String()+"\n"); err != nil {
		return fmt.Errorf("print explanation: %w", err)
	}
	return nil
}

func dialledTable(x client.Explanation) *table {
	if len(x.Dialled) == 0 {
		return head("dials nothing")
	}
	t := head("dials", "share", "weight", "locality")
	for _, d := range x.Dialled {
		address := d.Address
		if d.Gateway {
			address += " (gateway)"
		}
		share := fmt.Sprintf("%.1f%%", d.Percent)
		if d.Priority > 0 && d.Percent == 0 {
			share = fmt.Sprintf("standby %d", d.Priority)
		}
		t.add(address, share, strconv.FormatUint(uint64(d.Weight), 10), d.Locality)
	}
	return t
}

func candidateTable(x client.Explanation) *table {
	t := head("candidate", "cluster", "network", "workload", "health", "verdict", "why")
	for _, c := range x.Candidates {
		mark := "+ "
		if !c.Kept {
			mark = "- "
		}
		t.add(mark+c.Address, string(c.Cluster), cmp.Or(string(c.Network), "unknown"), c.Workload, c.Health, c.Verdict, c.Reason)
	}
	return t
}
