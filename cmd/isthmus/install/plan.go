package install

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// maxInput bounds the size of a file in bytes.
const maxInput = 8 << 20

// Input is what the user asked for.
type Input struct {
	// Files are values files or IstioOperator files; "-" is Stdin. Later ones go
	// over earlier ones.
	Files []string
	Stdin io.Reader
	// Set are PATH=VALUE pairs, of values or, as istioctl has them, of the spec of
	// an IstioOperator. They go over the files.
	Set []string
	// Profile says what to install; "" is what the files say, else the primary.
	Profile string
	// Revision and Namespace go over what the files say, unless they are empty.
	Revision, Namespace string
	// Release names the installation; "" derives it from chart and revision.
	Release string
	// Version of the control plane's image; "" is the chart's.
	Version string
}

// Plan is what is to be installed.
type Plan struct {
	Installations []Installation `json:"installations"`
	// Warnings name every field that has no meaning here.
	Warnings []string `json:"warnings,omitempty"`
	// SkipCRDs: definitions of custom resources are somebody else's.
	SkipCRDs bool `json:"skipCRDs,omitempty"`
}

// Installation is one chart with its values.
type Installation struct {
	Chart     manifests.Chart `json:"chart"`
	Release   string          `json:"release"`
	Namespace string          `json:"namespace"`
	// Revision is "default" or a name; "" if the chart has none.
	Revision string         `json:"revision,omitempty"`
	Values   map[string]any `json:"values,omitempty"`
	Version  string         `json:"version,omitempty"`
}

// Objects renders the installation.
func (i Installation) Objects() ([]*unstructured.Unstructured, error) {
	return manifests.Render(manifests.Options{Chart: i.Chart, Release: i.Release, Namespace: i.Namespace, Values: i.Values, Version: i.Version})
}

// Objects renders everything, without the definitions of custom resources, in
// the order in which it is to be applied.
func (p Plan) Objects() ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for _, i := range p.Installations {
		objects, err := i.Objects()
		if err != nil {
			return nil, err
		}
		out = append(out, objects...)
	}
	manifests.Sort(out)
	return out, nil
}

// Plan reads the input and decides what is to be installed.
func (in Input) Plan() (Plan, error) {
	spec, values := map[string]any{}, map[string]any{}
	for _, file := range in.Files {
		if err := in.read(file, &spec, &values); err != nil {
			return Plan{}, err
		}
	}
	for _, set := range in.Set {
		given := map[string]any{}
		if err := strvals.ParseInto(set, given); err != nil {
			return Plan{}, fmt.Errorf("read --set %s: %w; want PATH=VALUE, such as global.network=network-1", set, err)
		}
		ofSpec, ofValues := splitSet(given)
		spec, values = manifests.Merge(spec, ofSpec), manifests.Merge(values, ofValues)
	}
	if in.Profile != "" {
		spec["profile"] = in.Profile
	}
	m := &mapping{spec: spec, values: values}
	if err := m.run(); err != nil {
		return Plan{}, err
	}
	return in.finish(m)
}

// splitSet tells fields of an IstioOperator from values.
func splitSet(given map[string]any) (spec, values map[string]any) {
	spec, values = map[string]any{}, map[string]any{}
	for key, v := range given {
		if slices.Contains([]string{"profile", "hub", "tag", "namespace", "components", "values", "unvalidatedValues", "compatibilityVersion"}, key) {
			spec[key] = v
		} else {
			values[key] = v
		}
	}
	return spec, values
}

// read adds one file.
func (in Input) read(file string, spec, values *map[string]any) error {
	r := in.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("read values: %w", err)
		}
		defer func() { _ = f.Close() }()
		r = f
	}
	if r == nil {
		return fmt.Errorf("read values: there is no standard input")
	}
	decoder := utilyaml.NewYAMLOrJSONDecoder(io.LimitReader(r, maxInput), 4096)
	for n := 1; ; n++ {
		doc := map[string]any{}
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read values: %s, document %d: %w", file, n, err)
		}
		kind, _ := doc["kind"].(string)
		switch {
		case len(doc) == 0:
		case kind == "IstioOperator":
			given, ok := doc["spec"].(map[string]any)
			if !ok && doc["spec"] != nil {
				return fmt.Errorf("read values: %s, document %d: spec is no map", file, n)
			}
			*spec = manifests.Merge(*spec, given)
		case kind != "":
			return fmt.Errorf("read values: %s, document %d: is a %s: want a values file or an IstioOperator", file, n, kind)
		default:
			*values = manifests.Merge(*values, doc)
		}
	}
}

// finish makes installations of what was mapped.
func (in Input) finish(m *mapping) (Plan, error) {
	p := Plan{Warnings: m.warnings, SkipCRDs: m.skipCRDs}
	if m.chart != "" {
		if in.Revision != "" {
			m.values["revision"] = in.Revision
		}
		namespace := cmp.Or(in.Namespace, m.namespace, manifests.Text(m.values, "global.istioNamespace"), manifests.DefaultNamespace)
		if m.chart != manifests.EastWest {
			manifests.Set(m.values, "global.istioNamespace", namespace)
		}
		i := Installation{Chart: m.chart, Namespace: namespace, Revision: cmp.Or(manifests.Text(m.values, "revision"), "default"),
			Values: m.values, Version: in.Version}
		i.Release = cmp.Or(in.Release, releaseName(i))
		p.Installations = append(p.Installations, i)
	}
	for _, g := range m.gateways {
		namespace := cmp.Or(g.namespace, in.Namespace, m.namespace, manifests.DefaultNamespace)
		p.Installations = append(p.Installations, Installation{Chart: manifests.EastWest, Namespace: namespace, Values: g.values,
			Version: in.Version, Release: g.name})
	}
	if len(p.Installations) == 0 {
		return p, errors.New("plan the installation: nothing is to be installed: the profile is empty and no component is enabled")
	}
	for _, i := range p.Installations {
		unknown, err := manifests.UnknownValues(i.Chart, i.Values)
		if err != nil {
			return p, err
		}
		for _, at := range unknown {
			p.Warnings = append(p.Warnings, fmt.Sprintf("value %s has no meaning for chart %s and is left out", at, i.Chart))
		}
	}
	return p, nil
}

// releaseName is the name under which an installation is found again. A
// revision is an installation of its own.
func releaseName(i Installation) string {
	name := manifests.DefaultRelease(i.Chart)
	if i.Chart == manifests.EastWest {
		return cmp.Or(manifests.Text(i.Values, "name"), name)
	}
	if i.Revision != "default" && i.Revision != "" {
		name += "-" + i.Revision
	}
	return name
}

// ReleaseName is the default name of an installation.
func ReleaseName(c manifests.Chart, revision string) string {
	return releaseName(Installation{Chart: c, Revision: strings.TrimSpace(revision)})
}
