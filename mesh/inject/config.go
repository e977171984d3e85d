package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/hashicorp/go-multierror"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// Keys of ConfigMap istio-sidecar-injector.
const (
	KeyConfig = "config"
	KeyValues = "values"
)

// Policies: what happens to a pod that says nothing about injection.
const (
	PolicyEnabled  = "enabled"
	PolicyDisabled = "disabled"
)

// Limits bound what templates may do to the process that runs them. A zero
// field is the default.
type Limits struct {
	// Output is the most bytes that the templates of one pod may write (1 MiB).
	Output int
	// Time is how long the templates of one pod may take (3 s).
	Time time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Output <= 0 {
		l.Output = 1 << 20
	}
	if l.Time <= 0 {
		l.Time = 3 * time.Second
	}
	return l
}

// Options are what a control plane adds to the ConfigMap.
type Options struct {
	// Revision of the control plane; "" is the default one.
	Revision string
	// Getenv answers the env function of templates; nil knows no variables.
	Getenv func(string) string
	// Compliance is istiod's COMPLIANCE_POLICY, such as fips-140-3.
	Compliance string
	// InitBeforeProxy names init containers that start before a native sidecar.
	InitBeforeProxy []string
	Limits          Limits
}

// Config is a parsed and compiled ConfigMap istio-sidecar-injector. It does not
// change once it is made, and may be used by many goroutines.
type Config struct {
	policy           string
	defaultTemplates []string
	aliases          map[string][]string
	templates        map[string]*template.Template
	broken           map[string]error // templates that do not compile, by name
	sources          map[string]string
	never, always    []labels.Selector
	annotations      map[string]string
	values           Values
	options          Options
	warnings         []string
}

// document is key config as users write it.
type document struct {
	Policy               string                 `json:"policy"`
	DefaultTemplates     []string               `json:"defaultTemplates"`
	Templates            map[string]string      `json:"templates"`
	Template             string                 `json:"template"`
	Aliases              map[string][]string    `json:"aliases"`
	NeverInjectSelector  []metav1.LabelSelector `json:"neverInjectSelector"`
	AlwaysInjectSelector []metav1.LabelSelector `json:"alwaysInjectSelector"`
	InjectedAnnotations  map[string]string      `json:"injectedAnnotations"`
}

// ParseConfigMap is [Parse] for the data of a ConfigMap.
func ParseConfigMap(data map[string]string, o Options) (*Config, error) {
	for _, key := range []string{KeyConfig, KeyValues} {
		if _, ok := data[key]; !ok {
			return nil, fmt.Errorf("read injection configuration: key %q is missing: ConfigMap istio-sidecar-injector has the keys config and values", key)
		}
	}
	return Parse(data[KeyConfig], data[KeyValues], o)
}

// Parse reads both keys of ConfigMap istio-sidecar-injector, YAML or JSON, and
// compiles every template. The error names everything that is wrong at once. A
// template that no pod gets by default and that does not compile is a warning:
// pods that name it are refused, all others do not need it.
func Parse(config, values string, o Options) (*Config, error) {
	var doc document
	if err := yaml.Unmarshal([]byte(config), &doc); err != nil {
		return nil, fmt.Errorf("read injection configuration: key config: %w", err)
	}
	v, err := ParseValues(values)
	if err != nil {
		return nil, err
	}
	o.Limits = o.Limits.withDefaults()
	c := &Config{policy: doc.Policy, defaultTemplates: doc.DefaultTemplates, aliases: doc.Aliases, templates: map[string]*template.Template{}, broken: map[string]error{}, sources: doc.Templates,
		annotations: doc.InjectedAnnotations, values: v, options: o}
	if len(c.defaultTemplates) == 0 {
		c.defaultTemplates = []string{sidecarTemplate}
	}
	var errs *multierror.Error
	errs = multierror.Append(errs, c.check(&doc))
	byDefault := c.expand(c.defaultTemplates)
	for _, name := range slices.Sorted(maps.Keys(doc.Templates)) {
		t, err := compile(name, doc.Templates[name], o)
		switch {
		case err == nil:
			c.templates[name] = t
		case slices.Contains(byDefault, name):
			errs = multierror.Append(errs, fmt.Errorf("key config: %w", err))
		default:
			c.broken[name] = err
			c.warnings = append(c.warnings, fmt.Sprintf("key config: %v: pods that name the template will be refused", err))
		}
	}
	if len(c.templates) == 0 { // nobody could be injected
		for _, name := range slices.Sorted(maps.Keys(c.broken)) {
			errs = multierror.Append(errs, fmt.Errorf("key config: %w", c.broken[name]))
		}
	}
	if err := errs.ErrorOrNil(); err != nil {
		return nil, fmt.Errorf("read injection configuration: %w", err)
	}
	return c, nil
}

// check reads the parts that are no templates.
func (c *Config) check(doc *document) error {
	var errs *multierror.Error
	if c.policy != PolicyEnabled && c.policy != PolicyDisabled {
		errs = multierror.Append(errs, fmt.Errorf("key config: policy %q: want %s or %s", c.policy, PolicyEnabled, PolicyDisabled))
	}
	// Beside templates Istio's charts write a template that only fails, for an
	// istiod too old to know templates: it means nothing then.
	switch {
	case len(doc.Templates) > 0:
	case doc.Template != "":
		errs = multierror.Append(errs, errors.New("key config: template: a single template is the format of Istio before 1.10: write templates, a map from name to template"))
	default:
		errs = multierror.Append(errs, errors.New("key config: templates: there are none, so that no pod could be injected"))
	}
	var err error
	if c.never, err = selectors("neverInjectSelector", doc.NeverInjectSelector); err != nil {
		errs = multierror.Append(errs, err)
	}
	if c.always, err = selectors("alwaysInjectSelector", doc.AlwaysInjectSelector); err != nil {
		errs = multierror.Append(errs, err)
	}
	for _, name := range c.expand(c.defaultTemplates) {
		if _, ok := doc.Templates[name]; !ok && len(doc.Templates) > 0 {
			// Pods that name a template of their own are not concerned, as with istiod.
			c.warnings = append(c.warnings, fmt.Sprintf("key config: defaultTemplates: there is no template %q: pods that name none will be refused", name))
		}
	}
	return errs.ErrorOrNil()
}

func selectors(field string, in []metav1.LabelSelector) ([]labels.Selector, error) {
	var out []labels.Selector
	for i := range in {
		s, err := metav1.LabelSelectorAsSelector(&in[i])
		if err != nil {
			return nil, fmt.Errorf("key config: %s[%d]: %w", field, i, err)
		}
		if !s.Empty() {
			out = append(out, s)
		}
	}
	return out, nil
}

// expand replaces aliases. An alias of an alias is a template's name.
func (c *Config) expand(names []string) []string {
	var out []string
	for _, n := range names {
		if to, ok := c.aliases[n]; ok {
			out = append(out, to...)
			continue
		}
		out = append(out, n)
	}
	return out
}

// Templates lists the names of the templates there are.
func (c *Config) Templates() []string { return slices.Sorted(maps.Keys(c.templates)) }

// Sources returns the text of the templates.
func (c *Config) Sources() map[string]string { return maps.Clone(c.sources) }

// Values returns key values.
func (c *Config) Values() Values { return c.values }

// Warnings tells what is odd about the configuration without making it useless.
func (c *Config) Warnings() []string { return c.warnings }

// selectTemplates names the templates of a pod.
func (c *Config) selectTemplates(annotations map[string]string) []string {
	named, ok := annotations[annotationTemplates]
	if !ok {
		return c.expand(c.defaultTemplates)
	}
	names := strings.Split(named, ",")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	return c.expand(names)
}

// Values are Helm values, as key values holds them.
type Values struct{ tree map[string]any }

// ParseValues reads key values: YAML or JSON.
func ParseValues(text string) (Values, error) {
	tree := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
		return Values{}, fmt.Errorf("read injection configuration: key values: %w", err)
	}
	return Values{tree: tree}, nil
}

// Tree returns a copy of the values.
func (v Values) Tree() map[string]any {
	raw, err := json.Marshal(v.tree)
	out := map[string]any{}
	if err != nil || json.Unmarshal(raw, &out) != nil {
		return map[string]any{}
	}
	return out
}

func (v Values) at(path ...string) any {
	var at any = v.tree
	for _, key := range path {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[key]
	}
	return at
}

// text returns a value as text, "" if there is none. Tags may be numbers.
func (v Values) text(path ...string) string {
	switch x := v.at(path...).(type) {
	case nil:
		return ""
	case string:
		return x
	case bool, float64, int64:
		return fmt.Sprint(x)
	}
	return ""
}

// flag returns a value as a bool; what is not there or no bool is false.
func (v Values) flag(path ...string) bool {
	switch x := v.at(path...).(type) {
	case bool:
		return x
	case string:
		return x == "true"
	}
	return false
}
