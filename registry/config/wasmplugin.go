package config

import (
	"net/url"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func wasmPluginKind() descriptor {
	kind := Kind{Kind: mesh.KindWasmPlugin, Group: "extensions.istio.io", Version: "v1alpha1", Resource: "wasmplugins"}
	versions := []string{"v1alpha1"}
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &extensions.WasmPlugin{} },
		typed:    typedAs(func(o *extensionsv1alpha1.WasmPlugin) proto.Message { return &o.Spec }),
		validate: checks(validateWasmPlugin),
	}
}

// Bounds of texts, as the API server has them too.
const (
	maxSecretName = 253
	maxPluginName = 256
	maxEnvName    = 256
)

func validateWasmPlugin(c *checker, p *extensions.WasmPlugin) {
	c.targets(p.GetSelector(), p.GetTargetRef(), p.GetTargetRefs())
	validateModuleURL(c.at("url"), p.GetUrl())
	if s := p.GetSha256(); s != "" && (len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "") {
		c.at("sha256").failf("%q is not a checksum; give 64 digits 0-9 a-f", clip(s))
	}
	if len(p.GetImagePullSecret()) > maxSecretName {
		c.at("imagePullSecret").failf("is longer than %d characters", maxSecretName)
	}
	if len(p.GetPluginName()) > maxPluginName {
		c.at("pluginName").failf("is longer than %d characters", maxPluginName)
	}
	names := seen{}
	for i, e := range p.GetVmConfig().GetEnv() {
		at := c.at("vmConfig").index("env", i)
		switch name := at.at("name"); {
		case e.GetName() == "":
			name.failf("is empty; name the variable")
		case len(e.GetName()) > maxEnvName:
			name.failf("is longer than %d characters", maxEnvName)
		case names.twice(e.GetName()):
			name.failf("%q is there twice; remove one", clip(e.GetName()))
		}
		if e.GetValueFrom() != extensions.EnvValueSource_INLINE && e.GetValue() != "" {
			at.at("value").failf("is set with valueFrom %s; remove it or use INLINE", e.GetValueFrom())
		}
	}
	for i, m := range p.GetMatch() {
		for j, port := range m.GetPorts() {
			c.index("match", i).index("ports", j).at("number").port(int64(port.GetNumber()))
		}
	}
}

// validateModuleURL checks where a module comes from; without a scheme it is an
// image.
func validateModuleURL(c *checker, text string) {
	if text == "" {
		c.failf("is empty; say where the module is, as in oci://example.com/module:v1")
		return
	}
	u, err := url.ParseRequestURI(text)
	if err != nil {
		u, err = url.ParseRequestURI("http://" + text)
	}
	if err != nil {
		c.failf("%q is not a URL", clip(text))
		return
	}
	if !slices.Contains([]string{"", "file", "http", "https", "oci"}, u.Scheme) {
		c.failf("%q has scheme %q; use oci, http, https or file", clip(text), clip(u.Scheme))
	}
}
