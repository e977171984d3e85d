package config

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ConditionHealthy is the condition of a WorkloadEntry that says what its agent
// reported.
const ConditionHealthy = "Healthy"

// withStatus adds to an object what counts of its status. A status is written by
// machines: what cannot be read of it is as if it were not there.
func withStatus(o *mesh.Object, raw json.RawMessage) *mesh.Object {
	switch o.Key.Kind {
	case mesh.KindServiceEntry:
		o.Status = allocated(raw)
	case mesh.KindWorkloadEntry:
		o.Status = reported(raw)
	}
	if o.Status != nil && strings.HasPrefix(o.Version, contentVersionPrefix) {
		o.Version += "-" + strconv.FormatUint(xxhash.Sum64(raw), 16)
	}
	return o
}

// allocated reads the addresses that were allocated to the hosts of a ServiceEntry.
func allocated(raw json.RawMessage) *mesh.ObjectStatus {
	var in struct {
		Addresses []struct{ Value, Host string }
	}
	if json.Unmarshal(raw, &in) != nil {
		return nil
	}
	var out mesh.ObjectStatus
	for _, a := range in.Addresses {
		addr, err := netip.ParseAddr(a.Value)
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			continue
		}
		x := mesh.HostAddress{Host: mesh.Hostname(strings.ToLower(strings.TrimSuffix(a.Host, "."))), Address: addr.Unmap()}
		if x.Host != "" && !slices.Contains(out.Addresses, x) {
			out.Addresses = append(out.Addresses, x)
		}
	}
	if len(out.Addresses) == 0 {
		return nil
	}
	return &out
}

// reported reads the health that a machine's agent reported.
func reported(raw json.RawMessage) *mesh.ObjectStatus {
	var in struct {
		Conditions []struct{ Type, Status string }
	}
	if json.Unmarshal(raw, &in) != nil {
		return nil
	}
	for _, c := range in.Conditions {
		if c.Type != ConditionHealthy {
			continue
		}
		if c.Status == string(metav1.ConditionTrue) {
			return &mesh.ObjectStatus{Health: mesh.HealthReady}
		}
		return &mesh.ObjectStatus{Health: mesh.HealthNotReady}
	}
	return nil
}
