package config

import (
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func workloadGroupKind() descriptor {
	kind, versions := networkingKind(mesh.KindWorkloadGroup, "workloadgroups")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networking.WorkloadGroup{} },
		typed:    typedAs(func(o *networkingv1.WorkloadGroup) proto.Message { return &o.Spec }),
		validate: checks(validateWorkloadGroup),
	}
}

func validateWorkloadGroup(c *checker, g *networking.WorkloadGroup) {
	if g.GetTemplate() == nil {
		c.at("template").failf("is missing; describe the workloads, {} for nothing in common")
	}
	c.at("metadata").labels("labels", g.GetMetadata().GetLabels())
	if g.GetProbe() != nil {
		validateProbe(c.at("probe"), g.GetProbe())
	}
}

func validateProbe(c *checker, p *networking.ReadinessProbe) {
	c.at("periodSeconds").notNegative(int64(p.GetPeriodSeconds()))
	c.at("initialDelaySeconds").notNegative(int64(p.GetInitialDelaySeconds()))
	c.at("timeoutSeconds").notNegative(int64(p.GetTimeoutSeconds()))
	c.at("successThreshold").notNegative(int64(p.GetSuccessThreshold()))
	c.at("failureThreshold").notNegative(int64(p.GetFailureThreshold()))
	switch m := p.GetHealthCheckMethod().(type) {
	case *networking.ReadinessProbe_HttpGet:
		at := c.at("httpGet")
		at.at("port").port(int64(m.HttpGet.GetPort()))
		if s := m.HttpGet.GetScheme(); s != "" && s != "HTTP" && s != "HTTPS" {
			at.at("scheme").failf("%q is not known; use HTTP or HTTPS", clip(s))
		}
		for i, h := range m.HttpGet.GetHttpHeaders() {
			if !isPlainHeader(h.GetName()) {
				at.index("httpHeaders", i).at("name").failf("%q is not a header name; use letters, digits, - and _", clip(h.GetName()))
			}
		}
	case *networking.ReadinessProbe_TcpSocket:
		c.at("tcpSocket.port").port(int64(m.TcpSocket.GetPort()))
	case *networking.ReadinessProbe_Grpc:
		c.at("grpc.port").port(int64(m.Grpc.GetPort()))
	case *networking.ReadinessProbe_Exec:
		if len(m.Exec.GetCommand()) == 0 {
			c.at("exec.command").failf("is empty; give the command")
		}
	default:
		c.failf("does not say how to check; give httpGet, tcpSocket, grpc or exec")
	}
}
