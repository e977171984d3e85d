package main

import (
	"fmt"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds"
)

// proxies lists connected proxies with how far each has taken what it was sent.
func (r report) proxies() *table {
	names := []string{"proxy", "network", "kind", "version", "connected", "state"}
	if r.wide {
		names = append(names, "protocol", "address", "connection")
	}
	t := head(names...)
	for _, p := range r.o.Proxies {
		row := []string{string(p.Cluster) + "/" + p.ID, string(p.Network), string(p.Kind), p.Version, since(r.o.At, p.ConnectedAt), typeStates(p.Types)}
		if r.wide {
			row = append(row, p.Protocol, p.Address, p.Connection)
		}
		t.add(row...)
		for _, x := range p.Types {
			if x.Error != "" {
				t.note(fmt.Sprintf("%s rejected %s: %s", x.Name, orDash(strings.Join(x.Rejected, ", ")), oneLine(x.Error)))
			}
		}
	}
	return t
}

// typeStates groups types by state: "synced CDS EDS LDS, error RDS".
func typeStates(types []xds.TypeStatus) string {
	var out []string
	for _, s := range []xds.SyncStatus{xds.StatusSynced, xds.StatusStale, xds.StatusError, xds.StatusNotSent} {
		var names []string
		for _, x := range types {
			if x.Status == s {
				names = append(names, x.Name)
			}
		}
		if len(names) > 0 {
			word := strings.ReplaceAll(strings.ToLower(string(s)), "_", " ")
			out = append(out, word+" "+strings.Join(names, " "))
		}
	}
	return strings.Join(out, ", ")
}

// oneLine keeps a message of somebody else from breaking the table.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
