package config

import (
	"google.golang.org/protobuf/proto"
	networkingbeta "istio.io/api/networking/v1beta1"
	networkingv1beta1 "istio.io/client-go/pkg/apis/networking/v1beta1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func proxyConfigKind() descriptor {
	kind := Kind{Kind: mesh.KindProxyConfig, Group: "networking.istio.io", Version: "v1beta1", Resource: "proxyconfigs"}
	versions := []string{"v1beta1"}
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networkingbeta.ProxyConfig{} },
		typed:    typedAs(func(o *networkingv1beta1.ProxyConfig) proto.Message { return &o.Spec }),
		validate: checks(validateProxyConfig),
	}
}

func validateProxyConfig(c *checker, p *networkingbeta.ProxyConfig) {
	c.selector("selector", p.GetSelector())
	c.at("concurrency").notNegative(int64(p.GetConcurrency().GetValue()))
}
