package entry

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Whatever is written in an object, translation neither fails nor makes anything
// up that cannot be dialled.
func FuzzEntries(f *testing.F) {
	f.Add(`{"hosts":["a.example"],"ports":[{"number":80,"name":"http","protocol":"HTTP"}],"resolution":"DNS"}`, `{"address":"192.0.2.1"}`)
	f.Add(`{"hosts":["*.example",""],"addresses":["10.0.0.0/8","x"],"ports":[{"number":443,"name":"tls","protocol":"TLS","targetPort":8443}],"workloadSelector":{"labels":{"app":"a"}},"resolution":"STATIC"}`,
		`{"address":"::1%eth0","labels":{"app":"a"},"ports":{"tls":99999},"network":"n"}`)
	f.Add(`{"hosts":["A."],"ports":[{"number":70000}],"endpoints":[{"address":"unix:///x"},{}],"resolution":1}`, `{}`)
	f.Fuzz(func(t *testing.T, service, workload string) {
		se, we := &networking.ServiceEntry{}, &networking.WorkloadEntry{}
		if protojson.Unmarshal([]byte(service), se) != nil || protojson.Unmarshal([]byte(workload), we) != nil {
			return
		}
		x := NewIndex(domain)
		machine, entry := workloadEntry("west", "vm", we), serviceEntry("e", 1, se)
		x.SetMachine("west", machine.Key, machine)
		x.SetEntry(entry.Key, entry)
		x.Flush(none)
		for k, d := range x.All() {
			if k.Hostname == "" || strings.HasSuffix(string(k.Hostname), ".") && k.Hostname != "." && !strings.HasSuffix(string(k.Hostname), "..") {
				t.Errorf("host %q", k.Hostname)
			}
			seen := map[uint16]bool{}
			for _, p := range d.Definition.Ports {
				if p.Number == 0 || seen[p.Number] {
					t.Errorf("port %v", p)
				}
				seen[p.Number] = true
			}
			for _, e := range d.Endpoints {
				dials(t, d.Definition, e)
			}
		}
		x.SetEntry(entry.Key, nil)
		x.SetMachine("west", machine.Key, nil)
		if x.Flush(none); len(x.derived) > 0 || len(x.spaces) > 0 || len(x.hosts) > 0 || len(x.vips) > 0 {
			t.Error("something is left")
		}
	})
}

func dials(t *testing.T, d *mesh.Definition, e mesh.Endpoint) {
	socket := strings.HasPrefix(e.Workload.Host, socketPrefix)
	switch {
	case e.Addr.Zone() != "", e.Addr.Is4In6():
		t.Errorf("address %s", e.Addr)
	case !socket && e.Port == 0:
		t.Errorf("no port: %v", e)
	case !e.Addr.IsValid() && e.Workload.Host == "" && e.Workload.NetworkLabel == "":
		t.Errorf("nothing to dial: %v", e)
	case e.Workload.Host != "" && !socket && !d.Resolution.ByName():
		t.Errorf("a name that nobody resolves: %v", e)
	}
}
