// Package manifests holds what is installed into clusters: three Helm charts
// (the primary, a remote, an east-west gateway), and their rendering to
// objects.
//
// It owns the charts, the names of their values and the order in which objects
// are applied. It does not speak to clusters: cmd/isthmus/install does. The
// charts are ordinary ones, which helm installs as well; objects rendered here
// differ only in the label app.kubernetes.io/managed-by.
//
// Beside the charts the folder has the same objects as plain YAML (rendered/)
// and the world of the demo (demo/).
package manifests

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

//go:embed all:charts
var charts embed.FS

// Chart names a chart.
type Chart string

// The charts.
const (
	// Primary is the control plane and everything around it.
	Primary Chart = "isthmus"
	// Remote is what a cluster needs whose control plane is elsewhere.
	Remote Chart = "remote"
	// EastWest is a gateway through which other networks come in.
	EastWest Chart = "eastwest"
)

// Charts lists the charts.
func Charts() []Chart { return []Chart{Primary, Remote, EastWest} }

// ManagedBy is the value of label app.kubernetes.io/managed-by on everything
// that is rendered here.
const ManagedBy = "isthmus"

// Labels that say what an object was rendered for.
const (
	ManagedByLabel = "app.kubernetes.io/managed-by"
	InstanceLabel  = "app.kubernetes.io/instance"
)

// DefaultNamespace is where everything goes unless told otherwise.
const DefaultNamespace = "istio-system"

// Options say what to render.
type Options struct {
	// Chart is required.
	Chart Chart
	// Release names the installation; default: [DefaultRelease].
	Release string
	// Namespace of the release; default: [DefaultNamespace].
	Namespace string
	// Values go over those of the chart.
	Values map[string]any
	// Version is the version of the control plane, the tag of its image; default:
	// the chart's.
	Version string
}

// DefaultRelease is the name of an installation that has no other.
func DefaultRelease(c Chart) string {
	switch c {
	case Remote:
		return "isthmus-remote"
	case EastWest:
		return "istio-eastwestgateway"
	}
	return "isthmus"
}

// Render renders a chart to its objects, in the order in which they are to be
// applied. Definitions of custom resources are not among them: see [CRDs]. The
// error names the file of the chart and, for values, the value.
func Render(o Options) ([]*unstructured.Unstructured, error) {
	c, err := load(o.Chart)
	if err != nil {
		return nil, err
	}
	if o.Version != "" {
		c.Metadata.AppVersion = o.Version
	}
	values, err := util.ToRenderValues(c, clone(o.Values), common.ReleaseOptions{
		Name: cmp.Or(o.Release, DefaultRelease(o.Chart)), Namespace: cmp.Or(o.Namespace, DefaultNamespace), Revision: 1, IsInstall: true,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("render chart %s: %w", o.Chart, err)
	}
	values["Release"].(map[string]any)["Service"] = ManagedBy
	files, err := engine.Engine{}.RenderWithContext(context.Background(), c, values) // templates ask nobody
	if err != nil {
		return nil, fmt.Errorf("render chart %s: %w", o.Chart, plain(err))
	}
	var out []*unstructured.Unstructured
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if base := path.Base(name); strings.HasPrefix(base, "_") || !strings.HasSuffix(base, ".yaml") {
			continue
		}
		objects, err := Decode(strings.NewReader(files[name]))
		if err != nil {
			return nil, fmt.Errorf("render chart %s: file %s: %w", o.Chart, name, err)
		}
		out = append(out, objects...)
	}
	Sort(out)
	return out, nil
}

// plain takes the sentence of a chart's own check out of the template engine's
// wrapping, which tells users nothing.
func plain(err error) error {
	if _, text, ok := strings.Cut(err.Error(), "error calling fail: "); ok {
		return errors.New(text)
	}
	return err
}

// CRDs returns the definitions of Istio's custom resources.
func CRDs() ([]*unstructured.Unstructured, error) {
	const file = "charts/isthmus/crds/istio.yaml"
	raw, err := charts.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read definitions: %w", err)
	}
	out, err := Decode(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("read definitions: %w", err)
	}
	return out, nil
}

// Defaults returns the values of a chart.
func Defaults(c Chart) (map[string]any, error) {
	loaded, err := load(c)
	if err != nil {
		return nil, err
	}
	return loaded.Values, nil
}

// load reads a chart out of the binary.
func load(c Chart) (*chartv2.Chart, error) {
	if !slices.Contains(Charts(), c) {
		return nil, fmt.Errorf("read chart %q: there is none: want one of %v", c, Charts())
	}
	var files []*archive.BufferedFile
	root := path.Join("charts", string(c))
	err := fs.WalkDir(charts, root, func(name string, d fs.DirEntry, err error) error {
		// Definitions are a megabyte of YAML that rendering does not need.
		if err != nil || d.IsDir() || strings.Contains(name, "/crds/") {
			return err
		}
		raw, err := charts.ReadFile(name)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(name, root+"/"), Data: raw})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read chart %s: %w", c, err)
	}
	loaded, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("read chart %s: %w", c, err)
	}
	return loaded, nil
}

// clone copies values, because rendering writes into them.
func clone(in map[string]any) map[string]any {
	out := make(map[string]any, len(in))
	for k, v := range in {
		if m, ok := v.(map[string]any); ok {
			v = clone(m)
		}
		out[k] = v
	}
	return out
}

// Decode reads documents of YAML; empty ones are left out.
func Decode(in io.Reader) ([]*unstructured.Unstructured, error) {
	decoder := utilyaml.NewYAMLOrJSONDecoder(in, 4096)
	var out []*unstructured.Unstructured
	for n := 1; ; n++ {
		object := map[string]any{}
		err := decoder.Decode(&object)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if len(object) == 0 {
			continue
		}
		u := &unstructured.Unstructured{Object: object}
		if u.GetKind() == "" || u.GetAPIVersion() == "" || u.GetName() == "" {
			return nil, fmt.Errorf("document %d: is no object: apiVersion, kind and metadata.name are needed", n)
		}
		out = append(out, u)
	}
}

// Encode writes objects as documents of YAML.
func Encode(objects []*unstructured.Unstructured) ([]byte, error) {
	var out bytes.Buffer
	for _, o := range objects {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	return out.Bytes(), nil
}

// order of kinds: what others refer to comes first, what acts on others last.
func order() []string {
	return []string{"Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
		"ConfigMap", "Service", "EndpointSlice", "Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Gateway", "VirtualService",
		"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"}
}

// Sort puts objects in the order in which they are to be applied.
func Sort(objects []*unstructured.Unstructured) {
	kinds := order()
	rank := func(o *unstructured.Unstructured) int {
		if i := slices.Index(kinds, o.GetKind()); i >= 0 {
			return i
		}
		return slices.Index(kinds, "Gateway") // objects of users: when all that runs is there
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		return cmp.Or(rank(a)-rank(b), strings.Compare(a.GetName(), b.GetName()))
	})
}
