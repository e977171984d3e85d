package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/client"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry"
)

func (e environment) statusCommand() *cobra.Command {
	var address, format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show clusters, networks, services and proxies of a running control plane",
		Long: `Show what a running control plane knows: every cluster with its health and the age of
its data, kubeconfigs that are refused, networks with their gateways, services, what clusters disagree about, objects that
are not served as written, the CA with how far a rotation of its root has come, and connected
proxies with how far they have taken what they were sent. The page at /debug/ of the same
address shows the same, and a map.`,
		Example: `  isthmus status
  isthmus status -o wide

  # of one in a cluster
  kubectl -n istio-system port-forward deploy/istiod 8080 &
  isthmus status --address http://127.0.0.1:8080`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return e.status(cmd.Context(), address, format) },
	}
	cmd.Flags().StringVar(&address, "address", client.DefaultAddress, "URL of the control plane's http or monitoring port")
	cmd.Flags().StringVarP(&format, "output", "o", formatTable, "table, wide (every service, secrets, servers) or json")
	return cmd
}

func (e environment) status(ctx context.Context, address, format string) error {
	if format != formatTable && format != formatWide && format != formatJSON {
		return unknownFormat(format, formatTable, formatWide, formatJSON)
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
	if format == formatJSON {
		return e.printJSON(o)
	}
	return report{o: o, wide: format == formatWide}.print(e.out)
}

// report renders an overview for a terminal.
type report struct {
	o    serve.Overview
	wide bool
}

func (r report) print(w io.Writer) error {
	state := "ready"
	if r.o.NotReady != "" {
		state = "not ready: " + r.o.NotReady
	}
	if _, err := fmt.Fprintf(w, "isthmus %s on %s, primary %s, %s\n", r.o.Build.Version, r.o.Pod, r.o.Primary, state); err != nil {
		return fmt.Errorf("print status: %w", err)
	}
	for _, part := range []struct {
		title, empty string
		table        *table
	}{
		{"CLUSTERS", "none yet; join one: isthmus join --help", r.clusters()},
		{"REFUSED", "", r.refused()},
		{"NETWORKS", "none yet", r.networks()},
		{"SERVICES", "none yet", r.services()},
		{"CONFLICTS", "", r.conflicts()},
		{"PROBLEMS", "", r.problems()},
		{"CERTIFICATES", "", r.certificates()},
		{"PROXIES", "none connected", r.proxies()},
	} {
		if len(part.table.rows) < 2 && part.empty == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "\n%s\n", part.title); err != nil {
			return fmt.Errorf("print status: %w", err)
		}
		if len(part.table.rows) < 2 {
			part.table = head(part.empty)
		}
		if err := part.table.print(w, "  "); err != nil {
			return err
		}
	}
	return nil
}

func (r report) clusters() *table {
	known := map[mesh.ClusterID]registry.ClusterOverview{}
	for _, c := range r.o.Registry.Clusters {
		known[c.ID] = c
	}
	names := []string{"cluster", "health", "sync", "data", "network", "services", "ready/endpoints", "secret"}
	if r.wide {
		names = append(names, "server", "last event")
	}
	t := head(names...)
	for _, c := range r.o.Clusters {
		name := string(c.ID)
		if c.Primary {
			name += " *"
		}
		row := []string{name, string(c.Health), string(c.SyncStatus), dataAge(c), "", "", "", c.SecretName}
		if k, ok := known[c.ID]; ok {
			row[4], row[5], row[6] = cmp.Or(string(k.Network), "unknown"), strconv.Itoa(k.Services), ready(k.Count)
		}
		if r.wide {
			row = append(row, c.Server, since(r.o.At, c.LastEvent))
		}
		t.add(row...)
		if c.Reason != "" {
			t.note(oneLine(c.Reason))
		}
		if c.Weight != nil {
			t.note(weightNote(*c.Weight))
		}
		for _, token := range r.o.Tokens {
			if token.Cluster == c.ID && token.Problem != "" {
				t.note(oneLine(token.Problem))
			}
		}
	}
	return t
}

// weightNote says that a cluster or network has a weight of its own, and why.
func weightNote(w mesh.Weight) string {
	text := fmt.Sprintf("gets %d %% of its share", w.Percent)
	switch w.Percent {
	case 0:
		text = "is drained: gets 0 % of its share"
	case mesh.FullWeight:
		text = "gets all of its share"
	}
	return text + ": " + oneLine(w.From)
}

// refused lists the kubeconfigs that are not used.
func (r report) refused() *table {
	t := head("secret", "cluster", "reason", "problem")
	for _, x := range r.o.Refused {
		name := x.SecretName
		if x.Key != "" && x.Key != string(x.ID) {
			name += " key " + x.Key
		}
		t.add(name, string(x.ID), x.Reason, oneLine(x.Message))
	}
	return t
}

// dataAge says how old what is served of a cluster may be.
func dataAge(c multicluster.DebugCluster) string {
	switch {
	case c.SyncStatus != multicluster.StatusSynced:
		return "never read"
	case c.StaleSeconds > 0:
		return "stale for " + age(time.Duration(c.StaleSeconds*float64(time.Second)))
	}
	return "current"
}

func ready(c registry.Count) string { return fmt.Sprintf("%d/%d", c.Ready, c.Endpoints) }

func (r report) networks() *table {
	t := head("network", "clusters", "ready/endpoints", "entered through")
	for _, n := range r.o.Registry.Networks {
		gateways := make([]string, 0, len(n.Gateways))
		for _, g := range n.Gateways {
			text := fmt.Sprintf("%s:%d", cmp.Or(g.Address, g.Host), g.Port)
			if g.Address == "" {
				text += " (not resolved)"
			}
			gateways = append(gateways, text)
		}
		way := strings.Join(gateways, ", ")
		if way == "" && n.ID != "" {
			way = "no gateway"
		}
		t.add(cmp.Or(string(n.ID), "(unknown)"), join(n.Clusters), ready(n.Count), way)
		if n.Weight != nil {
			t.note(weightNote(*n.Weight))
		}
	}
	return t
}

func join(ids []mesh.ClusterID) string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return strings.Join(out, ",")
}

// services counts services by the number of their clusters, or, wide, lists
// them with a column per cluster.
func (r report) services() *table {
	if r.wide {
		return r.eachService()
	}
	t := head("in clusters", "services", "ready/endpoints", "for example")
	type group struct {
		n       int
		all     registry.Count
		example string
	}
	groups := map[int]*group{}
	most := 0
	for _, s := range r.o.Registry.Services {
		n := len(s.Clusters)
		most = max(most, n)
		if groups[n] == nil {
			groups[n] = &group{example: string(s.Hostname)}
		}
		groups[n].n++
		for _, c := range s.Clusters {
			groups[n].all.Ready += c.Ready
			groups[n].all.Endpoints += c.Endpoints
		}
	}
	for n := most; n >= 0; n-- {
		if g := groups[n]; g != nil {
			t.add(strconv.Itoa(n), strconv.Itoa(g.n), ready(g.all), g.example)
		}
	}
	return t
}

func (r report) eachService() *table {
	names := []string{"service", "ports"}
	for _, c := range r.o.Clusters {
		names = append(names, string(c.ID))
	}
	t := head(append(names, "conflicts")...)
	for _, s := range r.o.Registry.Services {
		row := []string{string(s.Hostname), strings.Join(s.Ports, " ")}
		for _, c := range r.o.Clusters {
			cell := ""
			for _, in := range s.Clusters {
				if in.ID == c.ID {
					cell = ready(in.Count)
				}
			}
			row = append(row, cell)
		}
		t.add(append(row, strconv.Itoa(s.Conflicts))...)
	}
	return t
}

func (r report) conflicts() *table {
	t := head("service", "field", "counts", "does not", "detail")
	for _, c := range r.o.Registry.Conflicts {
		t.add(string(c.Service.Hostname), c.Field, string(c.Winner), string(c.Loser), c.Detail)
	}
	return t
}

func (r report) problems() *table {
	t := head("object", "field", "for", "problem")
	for _, p := range r.o.Registry.Problems {
		t.add(p.Object.String(), p.Field, since(r.o.At, p.Since), p.Message)
	}
	return t
}
