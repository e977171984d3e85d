package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ParseNetworks reads MeshNetworks from YAML. Errors name the network and field.
func ParseNetworks(text string) (*meshconfig.MeshNetworks, error) {
	n, _, err := parseNetworks(text)
	return n, err
}

func parseNetworks(text string) (*meshconfig.MeshNetworks, []string, error) {
	out := &meshconfig.MeshNetworks{}
	_, unknown, err := decodeYAML(text, out)
	if err != nil {
		return nil, nil, fmt.Errorf("parse mesh networks: %w", err)
	}
	c := &checker{}
	for _, name := range slices.Sorted(maps.Keys(out.GetNetworks())) {
		at := c.key("networks", name)
		if name == "" || len(validation.IsValidLabelValue(name)) > 0 {
			at.failf("is not a network name; it must be a label value, at most 63 letters, digits and inner -_.")
		}
		validateNetwork(at, out.Networks[name])
	}
	if err := c.err(); err != nil {
		return nil, nil, fmt.Errorf("validate mesh networks: %w", err)
	}
	return out, unknown, nil
}

func validateNetwork(c *checker, n *meshconfig.Network) {
	for i, e := range n.GetEndpoints() {
		at := c.index("endpoints", i)
		switch x := e.GetNe().(type) {
		case *meshconfig.Network_NetworkEndpoints_FromCidr:
			if _, err := netip.ParsePrefix(x.FromCidr); err != nil {
				at.at("fromCidr").failf("%q is not a CIDR; write it as in 10.4.0.0/16", clip(x.FromCidr))
			}
		case *meshconfig.Network_NetworkEndpoints_FromRegistry:
			if x.FromRegistry == "" {
				at.at("fromRegistry").failf("is empty; name the cluster")
			}
		default:
			at.failf("is empty; give fromRegistry or fromCidr")
		}
	}
	for i, g := range n.GetGateways() {
		at := c.index("gateways", i)
		switch x := g.GetGw().(type) {
		case *meshconfig.Network_IstioNetworkGateway_Address:
			at.at("address").address(x.Address)
		case *meshconfig.Network_IstioNetworkGateway_RegistryServiceName:
			at.at("registryServiceName").host(x.RegistryServiceName, false)
		default:
			at.failf("is empty; give address or registryServiceName")
		}
		at.at("port").port(int64(g.GetPort()))
	}
}

// Keys of the ConfigMap that mesh-wide settings are kept in.
const (
	keyMesh     = "mesh"
	keyNetworks = "meshNetworks"
)

// FromConfigMap reads the settings from the data of Istio's ConfigMap (keys mesh
// and meshNetworks). A key that is absent means the defaults.
func FromConfigMap(data map[string]string) (mesh.Settings, error) {
	s, _, err := fromConfigMap(data)
	return s, err
}

func fromConfigMap(data map[string]string) (mesh.Settings, []string, error) {
	m, unknown, err := parseMesh(data[keyMesh])
	if err != nil {
		return mesh.Settings{}, nil, fmt.Errorf("key %s: %w", keyMesh, err)
	}
	n, more, err := parseNetworks(data[keyNetworks])
	if err != nil {
		return mesh.Settings{}, nil, fmt.Errorf("key %s: %w", keyNetworks, err)
	}
	out := mesh.Settings{Mesh: m, Networks: n}
	return out, append(unknown, more...), readOwn(data[keyOwn], &out)
}
