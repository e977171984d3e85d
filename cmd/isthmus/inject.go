package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/hashicorp/go-multierror"
	"github.com/spf13/cobra"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh/inject"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// maxManifest bounds a file of objects.
const maxManifest = 64 << 20

// injectFlags are the flags of inject, named as istioctl's kube-inject names them.
type injectFlags struct {
	files                                []string
	diff, native                         bool
	injectConfig, values, meshConfig     string
	revision, cluster, network, inNspace string
}

func (e environment) injectCommand() *cobra.Command {
	var f injectFlags
	cmd := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Put proxies into the pods of a file, without a cluster",
		Long: `Put proxies into the pods of a file: Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets,
Jobs, CronJobs and Lists of them, exactly as the webhook does it. All other objects are printed as
they are. No cluster is asked: templates, values and mesh settings are those of Isthmus unless files
with others are given, which may be ConfigMaps as kubectl get -o yaml prints them.

Where the webhook would leave a pod alone (host network, label sidecar.istio.io/inject=false, a
system namespace), so does the command, and says why. Injecting again what it has printed changes
nothing.`,
		Example: `  # see what a proxy would change
  isthmus inject -f deployment.yaml --diff

  # apply it
  isthmus inject -f deployment.yaml --cluster west --network net2 | kubectl apply -f -

  # with the configuration of a running mesh
  kubectl -n istio-system get configmap istio-sidecar-injector -o yaml > injector.yaml
  kubectl -n istio-system get configmap istio -o yaml > mesh.yaml
  isthmus inject -f deployment.yaml --injectConfigFile injector.yaml --meshConfigFile mesh.yaml`,
		Args: between(0, 0, ""),
		RunE: func(*cobra.Command, []string) error { return e.inject(f) },
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.files, "filename", "f", nil, "file with objects, - for standard input; may be repeated")
	fs.BoolVar(&f.diff, "diff", false, "print what changes instead of the objects")
	fs.StringVar(&f.injectConfig, "injectConfigFile", "", "file with templates: key config of ConfigMap istio-sidecar-injector, or the whole ConfigMap")
	fs.StringVar(&f.values, "valuesFile", "", "file with values: key values of that ConfigMap")
	fs.StringVar(&f.meshConfig, "meshConfigFile", "", "file with the mesh configuration: key mesh of ConfigMap istio, or the whole ConfigMap")
	fs.StringVarP(&f.revision, "revision", "r", "", "revision of the control plane")
	fs.StringVar(&f.cluster, "cluster", "", "ID of the cluster that the pods will run in")
	fs.StringVar(&f.network, "network", "", "network that the pods will be on")
	fs.StringVarP(&f.inNspace, "namespace", "n", "default", "namespace of objects that name none")
	fs.BoolVar(&f.native, "native-sidecars", false, "make the proxy an init container that stays (Kubernetes 1.29 and newer)")
	return cmd
}

func (e environment) inject(f injectFlags) error {
	if len(f.files) == 0 {
		return usageError{errors.New("name the objects with -f FILE, or -f - for standard input")}
	}
	templates, settings, err := f.configuration(e.getenv)
	if err != nil {
		return err
	}
	run := &injectRun{flags: f, templates: templates, request: inject.Request{Namespace: f.inNspace, Mesh: settings, NativeSidecars: f.native, Env: f.env()}}
	for _, w := range templates.Warnings() {
		run.notes = append(run.notes, "warning: "+w)
	}
	for _, name := range f.files {
		text, err := readManifest(name)
		if err != nil {
			return err
		}
		run.documents(name, text)
	}
	if err := run.errs.ErrorOrNil(); err != nil {
		return err
	}
	for _, note := range run.notes {
		e.complain("%s\n", note)
	}
	return e.print(run.out.String())
}

// env says the place as the path of the webhook says it.
func (f *injectFlags) env() map[string]string {
	out := map[string]string{}
	if f.cluster != "" {
		out[inject.EnvCluster] = f.cluster
	}
	if f.network != "" {
		out[inject.EnvNetwork] = f.network
	}
	return out
}

// configuration reads templates, values and mesh settings.
func (f *injectFlags) configuration(getenv func(string) string) (*inject.Config, *meshconfig.MeshConfig, error) {
	templates, values := inject.DefaultConfig(), inject.DefaultValues()
	if f.injectConfig != "" {
		text, err := readManifest(f.injectConfig)
		if err != nil {
			return nil, nil, err
		}
		templates = string(text)
		if data := configMapData(text); data != nil {
			templates = data[inject.KeyConfig]
			if v, ok := data[inject.KeyValues]; ok {
				values = v
			}
		}
	}
	if f.values != "" {
		text, err := readManifest(f.values)
		if err != nil {
			return nil, nil, err
		}
		values = string(text)
	}
	parsed, err := inject.Parse(templates, values, inject.Options{Revision: f.revision, Getenv: getenv})
	if err != nil {
		return nil, nil, err
	}
	settings, err := f.meshSettings()
	return parsed, settings, err
}

func (f *injectFlags) meshSettings() (*meshconfig.MeshConfig, error) {
	text := []byte("")
	if f.meshConfig != "" {
		var err error
		if text, err = readManifest(f.meshConfig); err != nil {
			return nil, err
		}
		if data := configMapData(text); data != nil {
			text = []byte(data["mesh"])
		}
	}
	m, err := config.ParseMesh(string(text))
	if err != nil {
		return nil, fmt.Errorf("--meshConfigFile %s: %w", f.meshConfig, err)
	}
	return m, nil
}

// configMapData returns the data of a ConfigMap, nil for anything else.
func configMapData(text []byte) map[string]string {
	var cm corev1.ConfigMap
	if yaml.Unmarshal(text, &cm) != nil || cm.Kind != "ConfigMap" {
		return nil
	}
	return cm.Data
}

// readManifest reads a file, or standard input for -.
func readManifest(name string) ([]byte, error) {
	in := os.Stdin
	if name != "-" {
		opened, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		defer func() { _ = opened.Close() }()
		in = opened
	}
	text, err := io.ReadAll(io.LimitReader(in, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxManifest {
		return nil, fmt.Errorf("read %s: more than %d MiB", name, maxManifest>>20)
	}
	return text, nil
}

// injectRun is one run of the command.
type injectRun struct {
	flags     injectFlags
	templates *inject.Config
	request   inject.Request
	out       strings.Builder
	notes     []string
	errs      *multierror.Error
	printed   int
}

// documents handles the documents of a file. A document without a pod comes out
// as it went in, comments included.
func (r *injectRun) documents(file string, text []byte) {
	for i, doc := range splitDocuments(text) {
		object := map[string]any{}
		if err := yaml.Unmarshal(doc, &object); err != nil {
			r.fail(file, i, fmt.Errorf("not YAML: %w", err))
			continue
		}
		if len(object) == 0 {
			continue
		}
		after, changed, err := r.object(object)
		if err != nil {
			r.fail(file, i, err)
			continue
		}
		if err := r.write(file, doc, object, after, changed); err != nil {
			r.fail(file, i, err)
		}
	}
}

func (r *injectRun) fail(file string, document int, err error) {
	r.errs = multierror.Append(r.errs, fmt.Errorf("%s, document %d: %w", file, document+1, err))
}

// object injects an object, or every item of a list.
func (r *injectRun) object(object map[string]any) (after map[string]any, changed bool, err error) {
	if items, ok := object["items"].([]any); ok {
		after = map[string]any{}
		for k, v := range object {
			after[k] = v
		}
		list := make([]any, len(items))
		for i := range items {
			list[i] = items[i]
			item, ok := items[i].(map[string]any)
			if !ok {
				continue
			}
			injected, did, err := r.object(item)
			if err != nil {
				return nil, false, fmt.Errorf("item %d: %w", i+1, err)
			}
			list[i], changed = injected, changed || did
		}
		after["items"] = list
		return after, changed, nil
	}
	result, err := r.templates.InjectObject(object, r.request)
	if err != nil || result == nil {
		return object, false, err
	}
	about := fmt.Sprintf("%s %s/%s", result.Kind, result.Namespace, result.Name)
	for _, w := range result.Warnings {
		r.notes = append(r.notes, "warning: "+w)
	}
	if !result.Inject {
		r.notes = append(r.notes, fmt.Sprintf("%s: not injected: %s", about, result.Reason))
		return object, false, nil
	}
	return result.Object, true, nil
}

// write adds an object, or what changed in it, to the output.
func (r *injectRun) write(file string, doc []byte, before, after map[string]any, changed bool) error {
	if !changed {
		if !r.flags.diff {
			r.separate()
			r.out.Write(bytes.TrimSpace(doc))
			r.out.WriteByte('\n')
		}
		return nil
	}
	text, err := yaml.Marshal(after)
	if err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	if !r.flags.diff {
		r.separate()
		r.out.Write(text)
		return nil
	}
	old, err := yaml.Marshal(before)
	if err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	kind, _ := before["kind"].(string)
	name := ""
	if meta, ok := before["metadata"].(map[string]any); ok {
		name, _ = meta["name"].(string)
	}
	r.out.WriteString(unifiedDiff(strings.TrimSpace(fmt.Sprintf("%s: %s %s", file, kind, name)), "with a proxy", string(old), string(text)))
	return nil
}

func (r *injectRun) separate() {
	if r.printed++; r.printed > 1 {
		r.out.WriteString("---\n")
	}
}

// splitDocuments splits YAML at its separators.
func splitDocuments(text []byte) [][]byte {
	var out [][]byte
	var doc bytes.Buffer
	for _, line := range bytes.SplitAfter(text, []byte("\n")) {
		if bytes.HasPrefix(line, []byte("---")) && (len(line) == 3 || strings.ContainsAny(string(line[3:4]), " \t\r\n")) {
			out = append(out, bytes.Clone(doc.Bytes()))
			doc.Reset()
			continue
		}
		doc.Write(line)
	}
	return append(out, bytes.Clone(doc.Bytes()))
}
