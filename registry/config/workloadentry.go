package config

import (
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func workloadEntryKind() descriptor {
	kind, versions := networkingKind(mesh.KindWorkloadEntry, "workloadentries")
	kind.Everywhere = true
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networking.WorkloadEntry{} },
		typed:    typedAs(func(o *networkingv1.WorkloadEntry) proto.Message { return &o.Spec }),
		validate: checks(validateWorkloadEntry),
	}
}

func validateWorkloadEntry(c *checker, w *networking.WorkloadEntry) {
	validateWorkload(c, w, nil, true)
}

// validateWorkload checks a workload by itself, or as an endpoint of a service
// with ports. Names are for services that resolve them.
func validateWorkload(c *checker, w *networking.WorkloadEntry, ports seen, names bool) {
	unix := strings.HasPrefix(w.GetAddress(), unixPrefix)
	switch at := c.at("address"); {
	case w.GetAddress() == "":
		if w.GetNetwork() == "" {
			at.failf("is empty; give an IP address, a host name or unix://PATH")
		} else {
			at.warnf("is empty: the workload is reached through a gateway of network %q", clip(w.GetNetwork()))
		}
	case unix:
		at.unixSocket(w.GetAddress())
		if len(w.GetPorts()) > 0 {
			c.at("ports").failf("is set with the address of a Unix socket; remove it")
		}
		if ports != nil && len(ports) != 1 {
			at.failf("is a Unix socket, but the service has %d ports; it may have one", len(ports))
		}
	case names:
		at.address(w.GetAddress())
	default:
		at.ip(w.GetAddress())
	}
	validateWorkloadPorts(c, w, ports)
	c.labels("labels", w.GetLabels())
}

func validateWorkloadPorts(c *checker, w *networking.WorkloadEntry, ports seen) {
	for _, name := range sortedKeys(w.GetPorts()) {
		at := c.key("ports", name)
		if _, ok := ports[name]; ports != nil && !ok {
			at.failf("is not the name of a port of the service; use one of those")
		}
		at.label(name, "a port")
		at.port(int64(w.GetPorts()[name]))
	}
}
