package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	yaml3 "go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/kube"
)

// maxDepth bounds lists of lists.
const maxDepth = 4

// id names an object within a cluster.
type id struct {
	kind            kube.Kind
	namespace, name string
}

// object is one object of a file.
type object struct {
	id   id
	line int
	// raw is its JSON: equal text means an equal object.
	raw string
	// value is what kube.Translator.Set takes, nil if err says why there is none.
	value any
	err   error
	// config is the kind of a configuration object, the zero Kind for others.
	config config.Kind
}

// content is what one reading of a file gave.
type content struct {
	objects []object
	// ignored counts objects of kinds that nothing reads.
	ignored int
}

// syntaxError is a file that cannot be read as YAML.
type syntaxError struct {
	line    int
	message string
}

func (e *syntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.message) }

// parse reads all objects of a file: documents, lists, and lists in documents.
func parse(cluster mesh.ClusterID, text []byte) (content, error) {
	var c content
	for _, d := range split(text) {
		doc, err := yaml.YAMLToJSON(d.text)
		if err != nil {
			return content{}, describe(d, err)
		}
		if bytes.Equal(bytes.TrimSpace(doc), []byte("null")) {
			continue
		}
		if err := c.add(cluster, d, doc, nil); err != nil {
			return content{}, err
		}
	}
	return c, nil
}

// document is a part of a file, with the number of its first line.
type document struct {
	text []byte
	line int
	// tree is the text parsed for its line numbers, nil until it is asked for.
	tree *yaml3.Node
}

// split cuts a file at its document separators.
func split(text []byte) []*document {
	var out []*document
	start, first, line := 0, 1, 0
	for at := 0; at < len(text); {
		end := len(text)
		if i := bytes.IndexByte(text[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		line++
		if isSeparator(text[at:end]) {
			out = append(out, &document{text: text[start:at], line: first})
			start, first = at+len("---"), line
		}
		at = end
	}
	return append(out, &document{text: text[start:], line: first})
}

func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || rest[0] == '\n' || rest[0] == '\r' || rest[0] == ' ' || rest[0] == '\t')
}

// yamlLine finds the line in an error of the YAML parser.
var yamlLine = regexp.MustCompile(`line (\d+): ?`)

func describe(d *document, err error) *syntaxError {
	message := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "), "yaml: ")
	line := d.line
	if m := yamlLine.FindStringSubmatchIndex(message); m != nil {
		if n, convErr := strconv.Atoi(message[m[2]:m[3]]); convErr == nil {
			line += max(n-1, 0)
		}
		message = message[:m[0]] + message[m[1]:]
	}
	return &syntaxError{line, strings.TrimSpace(message)}
}

// header is what every object has.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// add reads one object, or all objects of a list. path leads to the object
// within the document.
func (c *content) add(cluster mesh.ClusterID, d *document, raw json.RawMessage, path []any) error {
	var h header
	if err := json.Unmarshal(raw, &h); err != nil {
		message := jsonMessage(err)
		if at := fieldPath(err); len(at) > 0 {
			message, path = fmt.Sprint(join(at), ": ", message), append(path[:len(path):len(path)], at...)
		}
		return &syntaxError{d.lineOf(path...), "is not a Kubernetes object: " + message}
	}
	if strings.HasSuffix(h.Kind, "List") && h.Metadata.Name == "" {
		if len(path) > 2*maxDepth {
			return &syntaxError{d.lineOf(path...), "lists are nested too deep"}
		}
		for i, item := range h.Items {
			if err := c.add(cluster, d, withKind(h, item), append(path[:len(path):len(path)], "items", i)); err != nil {
				return err
			}
		}
		return nil
	}
	if h.Kind == "" || h.APIVersion == "" {
		return &syntaxError{d.lineOf(path...), "apiVersion or kind is missing"}
	}
	o, known := decode(cluster, &h, raw)
	if !known {
		c.ignored++
		return nil
	}
	o.line = d.lineOf(path...)
	if o.id.name == "" {
		return &syntaxError{o.line, h.Kind + " without metadata.name"}
	}
	if o.err != nil {
		o.line = d.lineOf(append(path, fieldPath(o.err)...)...)
	}
	c.objects = append(c.objects, o)
	return nil
}

// withKind gives an item of a typed list (ServiceList) the list's type.
func withKind(list header, item json.RawMessage) json.RawMessage {
	kind := strings.TrimSuffix(list.Kind, "List")
	var h header
	if kind == "" || json.Unmarshal(item, &h) != nil || h.Kind != "" {
		return item
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(item, &m) != nil || m == nil {
		return item
	}
	m["kind"], m["apiVersion"] = quote(kind), quote(list.APIVersion)
	if out, err := json.Marshal(m); err == nil {
		return out
	}
	return item
}

func quote(s string) json.RawMessage {
	b, _ := json.Marshal(s) // a string always encodes
	return b
}

// decode reads one object if it is of a kind that is read.
func decode(cluster mesh.ClusterID, h *header, raw json.RawMessage) (object, bool) {
	o := object{id: id{kube.Kind(h.Kind), h.Metadata.Namespace, h.Metadata.Name}, raw: string(raw)}
	into := func(v metav1.Object) (object, bool) {
		if o.err = json.Unmarshal(raw, v); o.err == nil {
			v.SetNamespace(o.id.namespace)
			o.value, _ = kube.Strip(v)
		}
		return o, true
	}
	namespaced := func(v metav1.Object) (object, bool) {
		if o.id.namespace == "" {
			o.id.namespace = metav1.NamespaceDefault
		}
		return into(v)
	}
	switch h.APIVersion + " " + h.Kind {
	case "v1 Service":
		return namespaced(&corev1.Service{})
	case "v1 Pod":
		return namespaced(&corev1.Pod{})
	case "v1 ConfigMap":
		return namespaced(&corev1.ConfigMap{})
	case "v1 Node":
		o.id.namespace = ""
		return into(&corev1.Node{})
	case "v1 Namespace":
		o.id.namespace = ""
		return into(&corev1.Namespace{})
	case "discovery.k8s.io/v1 EndpointSlice":
		return namespaced(&discoveryv1.EndpointSlice{})
	case gatewayv1.GroupName + "/v1 Gateway", gatewayv1.GroupName + "/v1beta1 Gateway":
		o.id.kind = kube.KindGateway
		return namespaced(&gatewayv1.Gateway{})
	case kube.MCSGroup + "/" + kube.MCSVersion + " ServiceExport":
		return namespaced(&kube.ServiceExport{})
	case kube.MCSGroup + "/" + kube.MCSVersion + " ServiceImport":
		return namespaced(&kube.ServiceImport{})
	}
	k, ok := config.Lookup(h.APIVersion, h.Kind)
	if !ok {
		return object{}, false
	}
	o.config = k
	if o.id.namespace == "" {
		o.id.namespace = metav1.NamespaceDefault
		raw = inNamespace(raw, o.id.namespace)
	}
	var decoded *mesh.Object
	if decoded, o.err = config.Decode(cluster, k, raw); o.err == nil {
		o.value = decoded
	}
	return o, true
}

// inNamespace sets the namespace of an object that names none.
func inNamespace(raw json.RawMessage, namespace string) json.RawMessage {
	var doc map[string]any
	if json.Unmarshal(raw, &doc) != nil {
		return raw
	}
	if m, ok := doc["metadata"].(map[string]any); ok {
		m["namespace"] = namespace
	}
	if out, err := json.Marshal(doc); err == nil {
		return out
	}
	return raw
}

// jsonMessage makes an error of the JSON decoder speak of the object's fields.
func jsonMessage(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Sprintf("want %s, got %s", wrong.Type, wrong.Value)
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}
