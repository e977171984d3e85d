package inject

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
	"time"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Data is what templates see. The fields are istiod's, so that templates that
// were written for it work.
type Data struct {
	// TypeMeta and DeploymentMeta are the workload that made the pod.
	TypeMeta       metav1.TypeMeta
	DeploymentMeta metav1.ObjectMeta
	// ObjectMeta and Spec are those of the pod as it was before any injection.
	ObjectMeta  metav1.ObjectMeta
	Spec        corev1.PodSpec
	ProxyConfig *meshconfig.ProxyConfig
	MeshConfig  *meshconfig.MeshConfig
	Values      map[string]any
	Revision    string
	// NativeSidecars says that the proxy is to be an init container that stays.
	NativeSidecars           bool
	ProxyImage               string
	ProxyUID                 int64
	ProxyGID                 int64
	InboundTrafficPolicyMode string
	CompliancePolicy         string
	// EstimatedConcurrency is how many threads the proxy gets; templates of older
	// releases of Istio ask for it.
	EstimatedConcurrency int
}

// TemplateError says which template failed, where, and why. Injection adds the
// pod.
type TemplateError struct {
	// Template is the name of the template.
	Template string
	// Line is the line of the template, or of what it wrote if Output is set; 0
	// if it is not known.
	Line int
	// Output is the line that the template wrote and that is no YAML or no part of a pod.
	Output string
	Err    error
}

func (e *TemplateError) Error() string {
	switch {
	case e.Output != "":
		return fmt.Sprintf("template %q: line %d of what it wrote (%q): %v", e.Template, e.Line, e.Output, e.Err)
	case e.Line > 0:
		return fmt.Sprintf("template %q, line %d: %v", e.Template, e.Line, e.Err)
	}
	return fmt.Sprintf("template %q: %v", e.Template, e.Err)
}

func (e *TemplateError) Unwrap() error { return e.Err }

// compile parses a template and makes it interruptible.
func compile(name, text string, o Options) (*template.Template, error) {
	t, err := template.New(name).Funcs(functions(o)).Parse(text)
	if err != nil {
		return nil, templateError(name, err)
	}
	for _, part := range t.Templates() {
		if part.Tree != nil {
			interruptible(part.Root)
		}
	}
	return t, nil
}

// interruptible adds an empty text to every list that can be run repeatedly:
// writing it asks the writer whether there is time left. Without it a loop that
// writes nothing could not be stopped.
func interruptible(n parse.Node) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return
		}
		for _, sub := range n.Nodes {
			interruptible(sub)
		}
	case *parse.IfNode:
		interruptible(n.List)
		interruptible(n.ElseList)
	case *parse.WithNode:
		interruptible(n.List)
		interruptible(n.ElseList)
	case *parse.RangeNode:
		interruptible(n.List)
		interruptible(n.ElseList)
		n.List.Nodes = append(n.List.Nodes, &parse.TextNode{NodeType: parse.NodeText, Pos: n.Pos})
	}
}

// maxRender is how deep templates in values may be nested.
const maxRender = 8

// Errors of templates that want too much.
var (
	errOutput = errors.New("writes too much")
	errTime   = errors.New("takes too long")
)

// budget is what the templates of one pod may use.
type budget struct {
	bytes int
	until time.Time
	now   func() time.Time
	limit Limits
}

func newBudget(l Limits) *budget {
	return &budget{bytes: l.Output, until: time.Now().Add(l.Time), now: time.Now, limit: l}
}

// boundedWriter fails when the budget is used up.
type boundedWriter struct {
	bytes.Buffer
	budget *budget
}

func (w *boundedWriter) Write(p []byte) (int, error) {
	if w.budget.now().After(w.budget.until) {
		return 0, fmt.Errorf("%w: all templates of a pod have %s", errTime, w.budget.limit.Time)
	}
	if w.budget.bytes -= len(p); w.budget.bytes < 0 {
		return 0, fmt.Errorf("%w: all templates of a pod have %d bytes", errOutput, w.budget.limit.Output)
	}
	return w.Buffer.Write(p)
}

// run executes a template and returns what it wrote as JSON values.
func run(t *template.Template, data *Data, getenv func(string) string, b *budget) (doc map[string]any, err error) {
	defer func() {
		// text/template passes on panics that are defects of what it runs.
		if p := recover(); p != nil {
			doc, err = nil, &TemplateError{Template: t.Name(), Err: fmt.Errorf("panic: %v", p)}
		}
	}()
	clone, err := t.Clone()
	if err != nil {
		return nil, templateError(t.Name(), err)
	}
	w := &boundedWriter{budget: b}
	clone.Funcs(template.FuncMap{"env": envFunction(getenv, data.NativeSidecars), "render": renderFunction(clone, data, b)})
	if err := clone.Execute(w, data); err != nil {
		return nil, templateError(t.Name(), err)
	}
	return decodeOverlay(t.Name(), w.Bytes())
}

// renderFunction runs templates that values hold: they see what the template
// around them sees, and share its budget.
func renderFunction(around *template.Template, data *Data, b *budget) func(string) (string, error) {
	depth := 0
	return func(text string) (string, error) {
		if depth++; depth > maxRender {
			return "", fmt.Errorf("render within render: %d levels are the most", maxRender)
		}
		defer func() { depth-- }()
		inner, err := around.New("render").Parse(text)
		if err != nil {
			return "", err
		}
		if inner.Tree != nil {
			interruptible(inner.Root)
		}
		w := &boundedWriter{budget: b}
		if err := inner.Execute(w, data); err != nil {
			return "", err
		}
		return w.String(), nil
	}
}

// decodeOverlay reads what a template wrote, and checks that it is about a pod.
func decodeOverlay(name string, out []byte) (map[string]any, error) {
	doc := map[string]any{}
	if err := yaml.Unmarshal(out, &doc); err != nil {
		return nil, outputError(name, out, err)
	}
	if doc == nil {
		return map[string]any{}, nil
	}
	dropEmptyLists(doc)
	if err := convert(doc, &corev1.Pod{}); err != nil {
		return nil, &TemplateError{Template: name, Err: fmt.Errorf("what it wrote is not a part of a pod: %w", err)}
	}
	return doc, nil
}

// dropEmptyLists takes out lists that a template began and did not fill. Merged
// as they are they would remove the pod's own.
func dropEmptyLists(doc map[string]any) {
	for part, keys := range map[string][]string{
		"metadata": {"labels", "annotations"},
		"spec":     {"containers", "initContainers", "volumes", "imagePullSecrets"},
	} {
		m, ok := doc[part].(map[string]any)
		for _, key := range keys {
			if v, there := m[key]; ok && there && v == nil {
				delete(m, key)
			}
		}
		if v, there := doc[part]; there && v == nil {
			delete(doc, part)
		}
	}
}

// templateError takes the line out of an error of text/template, which begins
// with "template: NAME:LINE".
func templateError(name string, err error) *TemplateError {
	e := &TemplateError{Template: name, Err: err}
	text, ok := strings.CutPrefix(err.Error(), "template: "+name+":")
	if !ok {
		return e
	}
	line, rest, ok := strings.Cut(text, ":")
	if _, scanErr := fmt.Sscanf(line, "%d", &e.Line); !ok || scanErr != nil {
		return e
	}
	// Execution errors name the column too.
	if column, after, ok := strings.Cut(rest, ": "); ok && strings.Trim(column, "0123456789") == "" {
		rest = after
	}
	e.Err = trimmedError{strings.TrimSpace(rest), err}
	return e
}

// trimmedError is an error without the place, which is said already.
type trimmedError struct {
	text string
	err  error
}

func (e trimmedError) Error() string { return e.text }
func (e trimmedError) Unwrap() error { return e.err }

// outputError shows the line that a YAML error is about.
func outputError(name string, out []byte, err error) *TemplateError {
	e := &TemplateError{Template: name, Err: err}
	_, after, ok := strings.Cut(err.Error(), "line ")
	if !ok {
		return e
	}
	var line int
	if _, scanErr := fmt.Sscanf(after, "%d", &line); scanErr != nil {
		return e
	}
	lines := strings.Split(string(out), "\n")
	if line < 1 || line > len(lines) {
		return e
	}
	text := strings.TrimSpace(lines[line-1])
	if len(text) > 120 {
		text = text[:120] + "..."
	}
	if text == "" {
		text = "(empty)"
	}
	e.Line, e.Output = line, text
	return e
}
