package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Defaults returns the settings of a mesh whose users set nothing.
func Defaults() mesh.Settings {
	return mesh.Settings{Mesh: defaultMesh(), Networks: &meshconfig.MeshNetworks{}}
}

// defaultMesh holds the defaults of istiod 1.31. What the injector decides by
// itself (concurrency) and what newer releases no longer default (a Zipkin
// address) is left unset.
func defaultMesh() *meshconfig.MeshConfig {
	return &meshconfig.MeshConfig{
		ProxyListenPort:                15001,
		ProxyInboundListenPort:         15006,
		ConnectTimeout:                 durationpb.New(10 * time.Second),
		ProtocolDetectionTimeout:       durationpb.New(0),
		DnsRefreshRate:                 durationpb.New(60 * time.Second),
		IngressClass:                   "istio",
		IngressService:                 "istio-ingressgateway",
		IngressControllerMode:          meshconfig.MeshConfig_STRICT,
		EnableTracing:                  true,
		AccessLogEncoding:              meshconfig.MeshConfig_TEXT,
		EnableAutoMtls:                 wrapperspb.Bool(true),
		EnablePrometheusMerge:          wrapperspb.Bool(true),
		TrustDomain:                    mesh.DefaultTrustDomain,
		RootNamespace:                  "istio-system",
		DefaultServiceExportTo:         []string{"*"},
		DefaultVirtualServiceExportTo:  []string{"*"},
		DefaultDestinationRuleExportTo: []string{"*"},
		OutboundTrafficPolicy:          &meshconfig.MeshConfig_OutboundTrafficPolicy{Mode: meshconfig.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY},
		InboundTrafficPolicy:           &meshconfig.MeshConfig_InboundTrafficPolicy{Mode: meshconfig.MeshConfig_InboundTrafficPolicy_PASSTHROUGH},
		LocalityLbSetting:              &networking.LocalityLoadBalancerSetting{Enabled: wrapperspb.Bool(true)},
		DefaultProviders:               &meshconfig.MeshConfig_DefaultProviders{},
		ExtensionProviders:             defaultProviders(),
		DefaultConfig:                  mesh.DefaultProxyConfig(),
	}
}

func defaultProviders() []*meshconfig.MeshConfig_ExtensionProvider {
	return []*meshconfig.MeshConfig_ExtensionProvider{
		{Name: "prometheus", Provider: &meshconfig.MeshConfig_ExtensionProvider_Prometheus{
			Prometheus: &meshconfig.MeshConfig_ExtensionProvider_PrometheusMetricsProvider{},
		}},
		{Name: "stackdriver", Provider: &meshconfig.MeshConfig_ExtensionProvider_Stackdriver{
			Stackdriver: &meshconfig.MeshConfig_ExtensionProvider_StackdriverProvider{},
		}},
		{Name: "envoy", Provider: &meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLog{
			EnvoyFileAccessLog: &meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider{Path: "/dev/stdout"},
		}},
	}
}

// ParseMesh reads a MeshConfig from YAML and fills in Istio's defaults. A field
// that is given replaces the default, except that defaultConfig and
// defaultProviders are merged field by field, extensionProviders by name and
// proxyMetadata by key, as istiod does. Unknown fields are left out. Errors name
// the field.
func ParseMesh(text string) (*meshconfig.MeshConfig, error) {
	m, _, err := parseMesh(text)
	return m, err
}

// parseMesh also returns the paths of unknown fields.
func parseMesh(text string) (*meshconfig.MeshConfig, []string, error) {
	given := &meshconfig.MeshConfig{}
	doc, unknown, err := decodeYAML(text, given)
	if err != nil {
		return nil, nil, fmt.Errorf("parse mesh configuration: %w", err)
	}
	present := map[string]json.RawMessage{}
	if err := json.Unmarshal(doc, &present); err != nil {
		return nil, nil, fmt.Errorf("parse mesh configuration: %w", err)
	}
	m := defaultMesh()
	providers, proxy, byKind := m.ExtensionProviders, m.DefaultConfig, m.DefaultProviders
	overlay(m, given, present)
	m.ExtensionProviders = mergeProviders(providers, given.GetExtensionProviders())
	if m.DefaultConfig, err = mergeProxyConfig(proxy, given.GetDefaultConfig(), present["defaultConfig"]); err != nil {
		return nil, nil, fmt.Errorf("parse mesh configuration: %w", err)
	}
	if m.DefaultProviders = byKind; given.GetDefaultProviders() != nil {
		m.DefaultProviders = given.DefaultProviders
	}
	slices.Sort(m.TrustDomainAliases)
	m.TrustDomainAliases = slices.Compact(m.TrustDomainAliases)
	c := &checker{}
	validateMesh(c, m)
	if err := c.err(); err != nil {
		return nil, nil, fmt.Errorf("validate mesh configuration: %w", err)
	}
	return m, unknown, nil
}

// decodeYAML reads a YAML document into a message and returns its canonical JSON.
func decodeYAML(text string, into proto.Message) (doc []byte, unknown []string, err error) {
	j, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return nil, nil, fmt.Errorf("not YAML: %w", err)
	}
	return decodeProto(j, "", into)
}

// overlay sets every field of to that the document gives, also to its zero value.
func overlay(to, given proto.Message, present map[string]json.RawMessage) {
	t, g := to.ProtoReflect(), given.ProtoReflect()
	fields := t.Descriptor().Fields()
	for name := range present {
		fd := fields.ByJSONName(name)
		if fd == nil {
			continue
		}
		if g.Has(fd) {
			t.Set(fd, g.Get(fd))
		} else {
			t.Clear(fd)
		}
	}
}

func mergeProviders(base, given []*meshconfig.MeshConfig_ExtensionProvider) []*meshconfig.MeshConfig_ExtensionProvider {
	out := slices.Clone(base)
	for _, p := range given {
		i := slices.IndexFunc(out, func(x *meshconfig.MeshConfig_ExtensionProvider) bool { return x.GetName() == p.GetName() })
		if i < 0 {
			out = append(out, p)
		} else {
			out[i] = p
		}
	}
	return out
}

func mergeProxyConfig(base, given *meshconfig.ProxyConfig, doc json.RawMessage) (*meshconfig.ProxyConfig, error) {
	if given == nil {
		return base, nil
	}
	present := map[string]json.RawMessage{}
	if err := json.Unmarshal(doc, &present); err != nil {
		return nil, fieldError("defaultConfig", "%v", err)
	}
	metadata := maps.Clone(base.GetProxyMetadata())
	overlay(base, given, present)
	if metadata != nil {
		maps.Copy(metadata, given.GetProxyMetadata())
		base.ProxyMetadata = metadata
	}
	return base, nil
}

func validateMesh(c *checker, m *meshconfig.MeshConfig) {
	c.at("proxyListenPort").port(int64(m.GetProxyListenPort()))
	c.at("proxyInboundListenPort").port(int64(m.GetProxyInboundListenPort()))
	if m.GetProxyListenPort() == m.GetProxyInboundListenPort() {
		c.at("proxyInboundListenPort").failf("%d is also proxyListenPort; use two ports", m.GetProxyInboundListenPort())
	}
	if p := m.GetProxyHttpPort(); p != 0 {
		c.at("proxyHttpPort").port(int64(p))
	}
	c.at("connectTimeout").duration(m.GetConnectTimeout(), time.Millisecond)
	c.at("protocolDetectionTimeout").duration(m.GetProtocolDetectionTimeout(), 0)
	c.at("dnsRefreshRate").duration(m.GetDnsRefreshRate(), time.Millisecond)
	c.at("hboneIdleTimeout").duration(m.GetHboneIdleTimeout(), 0)
	c.at("trustDomain").labelled(m.GetTrustDomain())
	for i, a := range m.GetTrustDomainAliases() {
		c.index("trustDomainAliases", i).labelled(a)
	}
	c.at("rootNamespace").namespaceName(m.GetRootNamespace())
	c.at("defaultServiceExportTo").exportTo(m.GetDefaultServiceExportTo())
	c.at("defaultVirtualServiceExportTo").exportTo(m.GetDefaultVirtualServiceExportTo())
	c.at("defaultDestinationRuleExportTo").exportTo(m.GetDefaultDestinationRuleExportTo())
	for i, s := range m.GetDiscoverySelectors() {
		for j, e := range s.GetMatchExpressions() {
			c.index("discoverySelectors", i).index("matchExpressions", j).requirement(e)
		}
	}
	validateVisibility(c.at("serviceEntryVisibility"), m.GetServiceEntryVisibility())
	for i, s := range m.GetServiceSettings() {
		at := c.index("serviceSettings", i)
		if len(s.GetHosts()) == 0 {
			at.at("hosts").failf("is empty; name the hosts that the settings are for")
		}
		for j, h := range s.GetHosts() {
			at.index("hosts", j).host(h, true)
		}
	}
	for i, p := range m.GetExtensionProviders() {
		if p.GetName() == "" {
			c.index("extensionProviders", i).at("name").failf("is empty; name the provider")
		}
	}
	validateDefaultConfig(c.at("defaultConfig"), m.GetDefaultConfig())
}

// validateVisibility checks whom ServiceEntries may be seen by. A policy that takes
// no namespace would be a hole that nobody sees.
func validateVisibility(c *checker, v *meshconfig.ServiceEntryVisibility) {
	for i, p := range v.GetPolicies() {
		for j, r := range p.GetMatchingRules() {
			at := c.index("policies", i).index("matchingRules", j)
			if r.GetNamespaceSelector() == nil {
				at.failf("is empty; give a namespaceSelector")
			}
			for k, e := range r.GetNamespaceSelector().GetMatchExpressions() {
				at.at("namespaceSelector").index("matchExpressions", k).requirement(e)
			}
		}
	}
}

// requirement checks one of the expressions by which labels are selected.
func (c *checker) requirement(e *meshconfig.LabelSelectorRequirement) {
	if e.GetKey() == "" {
		c.at("key").failf("is empty; name a label")
	}
	switch e.GetOperator() {
	case "In", "NotIn":
		if len(e.GetValues()) == 0 {
			c.at("values").failf("is empty; %s needs one at least", e.GetOperator())
		}
	case "Exists", "DoesNotExist":
		if len(e.GetValues()) > 0 {
			c.at("values").failf("is for In and NotIn; leave it out")
		}
	default:
		c.at("operator").failf("%q is not known; use In, NotIn, Exists or DoesNotExist", clip(e.GetOperator()))
	}
}

func validateDefaultConfig(c *checker, p *meshconfig.ProxyConfig) {
	if p.GetConfigPath() == "" {
		c.at("configPath").failf("is empty; leave it out for the default")
	}
	if p.GetBinaryPath() == "" {
		c.at("binaryPath").failf("is empty; leave it out for the default")
	}
	c.at("drainDuration").duration(p.GetDrainDuration(), time.Second)
	c.at("terminationDrainDuration").duration(p.GetTerminationDrainDuration(), 0)
	c.at("proxyAdminPort").port(int64(p.GetProxyAdminPort()))
	c.at("statusPort").port(int64(p.GetStatusPort()))
	c.at("discoveryAddress").hostPort(p.GetDiscoveryAddress())
	if n := p.GetConcurrency().GetValue(); n < 0 {
		c.at("concurrency").failf("%d is negative; use 0 for all cores", n)
	}
}
