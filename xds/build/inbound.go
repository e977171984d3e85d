package build

import (
	"encoding/json"
	"strings"
	"unique"
)

// InboundSpec is what a workload's own side of the configuration depends on.
// Fields are sorted where order has no meaning, so that equal workloads give
// equal specs.
type InboundSpec struct {
	// Targets are the service ports that the workload serves, ordered by target
	// port, then by age of the service, oldest first, host name and port number.
	// The first of each target port decides its protocol and the names in its
	// telemetry. Routers have none.
	Targets []InboundTarget `json:"targets,omitempty"`
	// Opened maps service ports to the ports that a router's pods listen on,
	// where the two differ.
	Opened map[uint16]uint16 `json:"opened,omitempty"`
	// CanonicalName, CanonicalRevision and MeshID label telemetry.
	CanonicalName     string `json:"name,omitempty"`
	CanonicalRevision string `json:"rev,omitempty"`
	MeshID            string `json:"mesh,omitempty"`
	// Labels are the workload's labels as far as selectors of configuration
	// objects look at them; for routers all of them.
	Labels map[string]string `json:"labels,omitempty"`
	// StatusPort and PrometheusPort are the agent's ports, 0 if unknown.
	StatusPort     uint16 `json:"status,omitempty"`
	PrometheusPort uint16 `json:"prom,omitempty"`
}

// InboundTarget is one service port on the workload.
type InboundTarget struct {
	Hostname  string `json:"host"`
	Name      string `json:"svc"`
	Namespace string `json:"ns"`
	PortName  string `json:"portName,omitempty"`
	Port      uint16 `json:"port"`
	Target    uint16 `json:"target"`
	Protocol  string `json:"proto"`
	// Sidecar names the Sidecar object that declares the port, NAMESPACE/NAME, and
	// Endpoint is where it says that the workload listens: IP:PORT or unix://PATH,
	// "" for where the client meant to go.
	Sidecar  string `json:"sidecar,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	// Bind is the address at which the proxy itself binds the port, "" for one at
	// which traffic is intercepted.
	Bind string `json:"bind,omitempty"`
}

// Inbound is a comparable handle of an [InboundSpec]: handles of equal specs
// are equal. The zero value is the empty spec.
type Inbound struct{ h unique.Handle[string] }

// MakeInbound interns a spec.
func MakeInbound(s InboundSpec) Inbound {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return Inbound{unique.Make(string(b))}
}

// binds reports whether the proxy binds any of the ports itself, without reading
// the spec: it is asked for each listener of each view, and hardly any does.
func (i Inbound) binds() bool { return i != (Inbound{}) && strings.Contains(i.h.Value(), `"bind":`) }

// Spec returns the spec behind the handle.
func (i Inbound) Spec() InboundSpec {
	var s InboundSpec
	if i == (Inbound{}) {
		return s
	}
	if err := json.Unmarshal([]byte(i.h.Value()), &s); err != nil {
		panic(err) // only MakeInbound makes handles
	}
	return s
}
