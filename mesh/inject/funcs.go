package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Bounds of functions that make something out of a number.
const (
	maxList   = 10_000
	maxRepeat = 1 << 16
)

// functions are what templates may call: sprig's, and Istio's, which win where
// both have a name. Functions that look outside the process are taken away, and
// env knows only what the control plane gives it.
func functions(o Options) template.FuncMap {
	f := sprig.TxtFuncMap()
	for _, outside := range []string{"expandenv", "getHostByName"} {
		f[outside] = func(string) (string, error) {
			return "", fmt.Errorf("function %s is not available: injection must not depend on where it runs", outside)
		}
	}
	bound(f)
	maps.Copy(f, template.FuncMap{
		"annotation":             annotation,
		"appendMultusNetwork":    appendMultusNetwork,
		"applicationPorts":       applicationPorts,
		"cleanProxyConfig":       cleanProxyConfig,
		"contains":               func(needle, haystack string) bool { return strings.Contains(haystack, needle) },
		"directory":              func(file string) string { dir, _ := path.Split(file); return dir },
		"env":                    envFunction(o.Getenv, false), // set anew for every run
		"excludeInboundPort":     excludeInboundPort,
		"excludeInterfaces":      func(s string) string { return s },
		"formatDuration":         func(d *durationpb.Duration) string { return d.AsDuration().String() },
		"fromJSON":               fromJSON,
		"includeInboundPorts":    includeInboundPorts,
		"indent":                 indent,
		"isset":                  func(m map[string]string, key string) bool { _, ok := m[key]; return ok },
		"kubevirtInterfaces":     func(s string) string { return s },
		"mergeMaps":              mergeMaps,
		"omit":                   omit,
		"omitNil":                omitNil,
		"otelResourceAttributes": otelResourceAttributes,
		"protoToJSON":            protoToJSON,
		"render":                 func(string) (string, error) { return "", nil }, // set anew for every run
		"strdict":                strdict,
		"strjoin":                func(sep string, parts []string) string { return strings.Join(parts, sep) },
		"structToJSON":           toJSON,
		"toJSON":                 toJSON,
		"toJson":                 toJSON,
		"toJsonMap":              toJSONMap,
		"toLower":                strings.ToLower,
		"toYaml":                 toYAML,
		"toYamlMap":              toYAMLMap,
		"valueOrDefault":         valueOrDefault,
	})
	return f
}

// bound replaces the functions of sprig that need memory by a number.
func bound(f template.FuncMap) {
	f["repeat"] = func(n int, s string) (string, error) {
		if n < 0 || n*len(s) > maxRepeat || n > maxRepeat {
			return "", fmt.Errorf("repeat %d times %d bytes: %d bytes are the most", n, len(s), maxRepeat)
		}
		return strings.Repeat(s, n), nil
	}
	count := func(name string, low, high, step int) ([]int, error) {
		out := []int{}
		for i := low; step > 0 && i < high || step < 0 && i > high; i += step {
			if len(out) == maxList {
				return nil, fmt.Errorf("%s: %d numbers are the most", name, maxList)
			}
			out = append(out, i)
		}
		return out, nil
	}
	f["until"] = func(n int) ([]int, error) {
		if n < 0 {
			return count("until", 0, n, -1)
		}
		return count("until", 0, n, 1)
	}
	f["untilStep"] = func(low, high, step int) ([]int, error) { return count("untilStep", low, high, step) }
	f["seq"] = func(args ...int) (string, error) {
		low, high, step := 1, 0, 1
		switch len(args) {
		case 1:
			high = args[0]
		case 2:
			low, high = args[0], args[1]
		case 3:
			low, step, high = args[0], args[1], args[2]
		default:
			return "", nil
		}
		if len(args) < 3 && high < low {
			step = -1
		}
		end := high + 1
		if step < 0 {
			end = high - 1
		}
		n, err := count("seq", low, end, step)
		return strings.Trim(fmt.Sprint(n), "[]"), err
	}
	for _, random := range []string{"randAlpha", "randAlphaNum", "randNumeric", "randAscii", "randBytes", "randInt", "uuidv4", "bcrypt", "htpasswd",
		"genPrivateKey", "genCA", "genCAWithKey", "genSelfSignedCert", "genSelfSignedCertWithKey", "genSignedCert", "genSignedCertWithKey",
		"encryptAES", "derivePassword"} {
		f[random] = func(...any) (string, error) {
			return "", fmt.Errorf("function %s is not available: injecting a pod twice must give the same pod, and soon", random)
		}
	}
}

// envFunction answers from the control plane's environment. Templates of Istio
// before 1.27 ask in this way whether sidecars are native, which is decided for
// every pod.
func envFunction(getenv func(string) string, native bool) func(string, string) string {
	return func(key, otherwise string) string {
		if key == envNative {
			return strconv.FormatBool(native)
		}
		if getenv != nil {
			if v := getenv(key); v != "" {
				return v
			}
		}
		return otherwise
	}
}

// annotation returns an annotation, or the text of a default. The default may
// be anything, among that a number or a proto enum.
func annotation(meta metav1.ObjectMeta, name string, otherwise any) string {
	if v, ok := meta.Annotations[name]; ok {
		return v
	}
	return fmt.Sprint(otherwise)
}

func valueOrDefault(value, otherwise any) any {
	if value == nil || value == "" {
		return otherwise
	}
	return value
}

// excludeInboundPort adds a port to a list with commas, unless it is 0, none or
// there already.
func excludeInboundPort(port any, list string) string {
	p := strings.TrimSpace(fmt.Sprint(port))
	if p == "" || p == "0" {
		return list
	}
	var out []string
	for _, part := range strings.Split(list, ",") {
		part = strings.TrimSpace(part)
		if part == p {
			return list
		}
		if part != "" {
			out = append(out, part)
		}
	}
	return strings.Join(append(out, p), ",")
}

func applicationPorts(containers []corev1.Container) string {
	return ports(containers, func(c *corev1.Container) bool { return c.Name != ProxyContainer })
}

func includeInboundPorts(containers []corev1.Container) string {
	return ports(containers, func(*corev1.Container) bool { return true })
}

// ports lists the TCP ports of containers.
func ports(containers []corev1.Container, wanted func(*corev1.Container) bool) string {
	var out []string
	for i := range containers {
		if !wanted(&containers[i]) {
			continue
		}
		for _, p := range containers[i].Ports {
			if p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP {
				out = append(out, strconv.Itoa(int(p.ContainerPort)))
			}
		}
	}
	return strings.Join(out, ",")
}

// indent indents every line but the first.
func indent(spaces int, s string) (string, error) {
	if spaces < 0 || spaces > 256 {
		return "", fmt.Errorf("indent by %d: between 0 and 256 are possible", spaces)
	}
	return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", spaces)), nil
}

// toJSON is {} for what is not there or cannot be written.
func toJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil || string(raw) == "null" {
		return "{}"
	}
	return string(raw)
}

// fromJSON is nothing for what is not JSON, so that a range over it does nothing.
func fromJSON(s string) any {
	var v any
	if json.Unmarshal([]byte(s), &v) != nil {
		return map[string]any{}
	}
	return v
}

func toYAML(v any) string {
	raw, err := yaml.Marshal(v)
	if err != nil {
		return ""
	}
	return string(raw)
}

// protoToJSON writes a message without needless space, so that the same message
// is always the same text. Of a ProxyConfig only what differs from the proxy's
// own defaults is written.
func protoToJSON(m proto.Message) (string, error) {
	m = cleanProxyConfig(m)
	if m == nil || !m.ProtoReflect().IsValid() {
		return "{}", nil
	}
	return messageJSON(m)
}

func messageJSON(m proto.Message) (string, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("write message as JSON: %w", err)
	}
	// protojson varies its white space on purpose.
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return "", fmt.Errorf("write message as JSON: %w", err)
	}
	out, err := json.Marshal(v)
	return string(out), err
}

// cleanProxyConfig clears what is as the proxy has it by default.
func cleanProxyConfig(m proto.Message) proto.Message {
	pc, ok := m.(*meshconfig.ProxyConfig)
	if !ok || pc == nil {
		return m
	}
	out := proto.CloneOf(pc)
	to, d := out.ProtoReflect(), mesh.DefaultProxyConfig().ProtoReflect()
	fields := to.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if d.Has(fd) && to.Has(fd) && to.Get(fd).Equal(d.Get(fd)) {
			to.Clear(fd)
		}
	}
	return out
}

// appendMultusNetwork adds a network to the annotation of Multus, in the form,
// JSON or with commas, that it has.
func appendMultusNetwork(existing, network string) string {
	if existing == "" {
		return network
	}
	end := strings.LastIndex(existing, "]")
	if end < 0 {
		for _, n := range strings.Split(existing, ",") {
			if strings.TrimSpace(n) == network {
				return existing
			}
		}
		return existing + ", " + network
	}
	var networks []map[string]any
	if json.Unmarshal([]byte(existing), &networks) != nil {
		return existing // not ours to repair
	}
	for _, n := range networks {
		if n["name"] == network {
			return existing
		}
	}
	sep := ", "
	if len(networks) == 0 {
		sep = ""
	}
	return existing[:end] + sep + fmt.Sprintf("{\"name\": %q}", network) + existing[end:]
}

// omit returns a map without keys. Labels and annotations, which are maps of
// texts, stay such maps; values are maps of anything.
func omit(m any, keys ...string) (any, error) {
	switch m := m.(type) {
	case nil:
		return map[string]string{}, nil
	case map[string]string:
		return leaveOut(m, keys), nil
	case map[string]any:
		return leaveOut(m, keys), nil
	}
	return nil, fmt.Errorf("omit keys of a %T: want a map", m)
}

func leaveOut[V any](m map[string]V, keys []string) map[string]V {
	out := make(map[string]V, len(m))
	for k, v := range m {
		if !slices.Contains(keys, k) {
			out[k] = v
		}
	}
	return out
}

// omitNil takes out of maps and lists what is nothing, at any depth; what is
// empty by that is nothing too. Other values stay as they are.
func omitNil(v any) any {
	switch x := v.(type) {
	case map[string]any:
		out, gone := make(map[string]any, len(x)), false
		for k, sub := range x {
			if kept := omitNil(sub); kept != nil {
				out[k] = kept
			} else {
				gone = true
			}
		}
		if gone && len(out) == 0 {
			return nil
		}
		return out
	case []any:
		out := make([]any, 0, len(x))
		for _, sub := range x {
			if kept := omitNil(sub); kept != nil {
				out = append(out, kept)
			}
		}
		if len(out) == 0 && len(x) > 0 {
			return nil
		}
		return out
	}
	return v
}

// strdict makes a map of texts. A key without a value has an empty one.
func strdict(pairs ...string) map[string]string {
	out := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = ""
		if i+1 < len(pairs) {
			out[pairs[i]] = pairs[i+1]
		}
	}
	return out
}

// mergeMaps makes one map of several; later ones win.
func mergeMaps(in ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range in {
		maps.Copy(out, m)
	}
	return out
}

// toJSONMap is mergeMaps as JSON.
func toJSONMap(in ...map[string]string) string { return toJSON(mergeMaps(in...)) }

// toYAMLMap is mergeMaps as YAML, "" for an empty map.
func toYAMLMap(in ...map[string]string) string {
	m := mergeMaps(in...)
	if len(m) == 0 {
		return ""
	}
	return toYAML(m)
}

// otelResourceAttributes writes attributes in the form of OTEL_RESOURCE_ATTRIBUTES.
func otelResourceAttributes(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}
