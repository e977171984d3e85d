package config

import (
	"strings"

	"google.golang.org/protobuf/proto"
	telemetry "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func telemetryKind() descriptor {
	kind := Kind{Kind: mesh.KindTelemetry, Group: "telemetry.istio.io", Version: "v1", Resource: "telemetries"}
	versions := []string{"v1", "v1alpha1"}
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &telemetry.Telemetry{} },
		typed:    typedAs(func(o *telemetryv1.Telemetry) proto.Message { return &o.Spec }),
		validate: checks(validateTelemetry),
	}
}

func validateTelemetry(c *checker, t *telemetry.Telemetry) {
	c.targets(t.GetSelector(), t.GetTargetRef(), t.GetTargetRefs())
	for i, m := range t.GetMetrics() {
		validateMetrics(c.index("metrics", i), m)
	}
	if len(t.GetTracing()) > 1 {
		c.at("tracing").warnf("has %d entries; one is used", len(t.GetTracing()))
	}
	for i, x := range t.GetTracing() {
		validateTracing(c.index("tracing", i), x)
	}
	for i, l := range t.GetAccessLogging() {
		at := c.index("accessLogging", i)
		at.providers(l.GetProviders())
		if f := l.GetFilter(); f != nil {
			at.at("filter.expression").expression(f.GetExpression())
		}
	}
}

func (c *checker) providers(list []*telemetry.ProviderRef) {
	for i, p := range list {
		if p.GetName() == "" {
			c.index("providers", i).at("name").failf("is empty; name a provider of meshConfig.extensionProviders")
		}
	}
}

func validateMetrics(c *checker, m *telemetry.Metrics) {
	c.providers(m.GetProviders())
	c.at("reportingInterval").millis(m.GetReportingInterval())
	for i, o := range m.GetOverrides() {
		at := c.index("overrides", i)
		if x, ok := o.GetMatch().GetMetricMatch().(*telemetry.MetricSelector_CustomMetric); ok && x.CustomMetric == "" {
			at.at("match.customMetric").failf("is empty; name the metric")
		}
		for _, k := range sortedKeys(o.GetTagOverrides()) {
			tag := o.GetTagOverrides()[k]
			of := at.key("tagOverrides", k)
			if k == "" {
				of.warnf("has no name; name the tag")
			}
			switch op := tag.GetOperation(); {
			case op == telemetry.MetricsOverrides_TagOverride_UPSERT && tag.GetValue() == "":
				of.at("value").failf("is empty; operation UPSERT needs an expression")
			case op == telemetry.MetricsOverrides_TagOverride_REMOVE && tag.GetValue() != "":
				of.at("value").failf("is set with operation REMOVE; remove it")
			}
		}
	}
}

func validateTracing(c *checker, t *telemetry.Tracing) {
	c.providers(t.GetProviders())
	if len(t.GetProviders()) > 1 {
		c.at("providers").warnf("has %d entries; one is used", len(t.GetProviders()))
	}
	if v := t.GetRandomSamplingPercentage().GetValue(); !(v >= 0 && v <= 100) {
		c.at("randomSamplingPercentage").failf("%v is not a percentage; use 0-100", v)
	}
	for _, k := range sortedKeys(t.GetCustomTags()) {
		at := c.key("customTags", k)
		if k == "" {
			at.failf("has no name; name the tag")
		}
		switch x := t.GetCustomTags()[k].GetType().(type) {
		case *telemetry.Tracing_CustomTag_Literal:
			at.at("literal.value").notEmpty(x.Literal.GetValue())
		case *telemetry.Tracing_CustomTag_Header:
			at.at("header.name").notEmpty(x.Header.GetName())
		case *telemetry.Tracing_CustomTag_Environment:
			at.at("environment.name").notEmpty(x.Environment.GetName())
		}
	}
}

func (c *checker) notEmpty(s string) {
	if s == "" {
		c.failf("is empty; give a value")
	}
}

// expression checks what can be told of an expression (CEL) without its
// language: that it has an end, and that its quotes and brackets do.
func (c *checker) expression(e string) {
	if strings.TrimSpace(e) == "" {
		c.failf("is empty; remove the filter or give an expression")
	} else if why := unbalanced(e); why != "" {
		c.failf("%q %s", clip(e), why)
	}
}

// unbalanced says what is open at the end of an expression, or closed without
// being open.
func unbalanced(e string) string {
	partner := map[byte]byte{')': '(', ']': '[', '}': '{'}
	var open []byte
	for i := 0; i < len(e); i++ {
		switch b := e[i]; b {
		case '"', '\'':
			n := quoted(e[i:], i > 0 && (e[i-1] == 'r' || e[i-1] == 'R'))
			if n < 0 {
				return "has a quote that is not closed"
			}
			i += n
		case '(', '[', '{':
			open = append(open, b)
		case ')', ']', '}':
			if len(open) == 0 || open[len(open)-1] != partner[b] {
				return "closes a bracket that is not open"
			}
			open = open[:len(open)-1]
		case '/':
			if strings.HasPrefix(e[i:], "//") { // a comment, to the end of the line
				if n := strings.IndexByte(e[i:], '\n'); n >= 0 {
					i += n
				} else {
					i = len(e)
				}
			}
		}
	}
	if len(open) > 0 {
		return "has a bracket that is not closed"
	}
	return ""
}

// quoted returns where the text ends that begins at the start of s, -1 if it has
// no end. In a raw text a backslash is nothing special.
func quoted(s string, raw bool) int {
	mark := s[:1]
	if triple := strings.Repeat(mark, 3); strings.HasPrefix(s, triple) {
		mark = triple
	}
	for i := len(mark); i < len(s); i++ {
		switch {
		case s[i] == '\\' && !raw:
			i++
		case strings.HasPrefix(s[i:], mark):
			return i + len(mark) - 1
		}
	}
	return -1
}
