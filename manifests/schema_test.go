package manifests_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// TestSchemas holds the schemas equal to the values that the charts have: types
// are those of the defaults. What a chart does not have is allowed, because
// files of Istio's have more; install names it.
func TestSchemas(t *testing.T) {
	for _, c := range manifests.Charts() {
		t.Run(string(c), func(t *testing.T) {
			defaults, err := manifests.Defaults(c)
			require.NoError(t, err)
			schema := schemaOf("", defaults)
			schema["$schema"] = "http://json-schema.org/draft-07/schema#"
			schema["title"] = "Values of chart " + string(c) + ". Made from values.yaml by: go test ./manifests -update"
			text, err := json.MarshalIndent(schema, "", "  ")
			require.NoError(t, err)
			golden(t, filepath.Join("charts", string(c), "values.schema.json"), append(text, '\n'))
		})
	}
}

// choices are values of which there are only some.
func choices() map[string][]any {
	policy := []any{"Fail", "Ignore"}
	return map[string][]any{
		"sidecarInjectorWebhook.failurePolicy":      policy,
		"base.validationFailurePolicy":              policy,
		"sidecarInjectorWebhook.reinvocationPolicy": {"Never", "IfNeeded"},
		"global.proxy.autoInject":                   {"enabled", "disabled"},
		"global.imagePullPolicy":                    {"", "Always", "IfNotPresent", "Never"},
		"service.type":                              {"ClusterIP", "NodePort", "LoadBalancer"},
		"pilot.externalService.type":                {"ClusterIP", "NodePort", "LoadBalancer"},
	}
}

func schemaOf(at string, v any) map[string]any {
	if list, ok := choices()[at]; ok {
		return map[string]any{"enum": list}
	}
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{"type": []any{"object", "null"}}
		properties := map[string]any{}
		for key, x := range v {
			inner := key
			if at != "" {
				inner = at + "." + key
			}
			properties[key] = schemaOf(inner, x)
		}
		if len(properties) > 0 {
			out["properties"] = properties
		}
		return out
	case []any:
		return map[string]any{"type": []any{"array", "null"}}
	case bool:
		return map[string]any{"type": []any{"boolean", "null"}}
	case string:
		// Tags, ports and percentages look like numbers to YAML.
		return map[string]any{"type": []any{"string", "number", "null"}}
	default:
		return map[string]any{"type": []any{"number", "null"}}
	}
}
