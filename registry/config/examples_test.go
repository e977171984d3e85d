package config

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// TestExamplesOfTheReference: what Istio's reference shows its readers is
// accepted. The reference is made of the comments of the API, which is among
// this module's dependencies.
func TestExamplesOfTheReference(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	require.NoError(t, err)
	tried := 0
	require.NoError(t, filepath.WalkDir(strings.TrimSpace(string(dir)), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".proto" {
			return err
		}
		text, err := os.ReadFile(path)
		for i, example := range examplesIn(string(text)) {
			var head struct {
				APIVersion, Kind string
			}
			if yaml.Unmarshal([]byte(example), &head) != nil || !strings.Contains(head.APIVersion, "istio.io/") {
				continue // a part of an object, something else, or with "..." in it
			}
			d, ok := lookupKind(mesh.ObjectKind(head.Kind))
			if !ok {
				continue
			}
			tried++
			doc, err := yaml.YAMLToJSON([]byte(example))
			require.NoError(t, err)
			_, err = Review("east", d.Kind, doc)
			require.NoError(t, err, "%s, example %d:\n%s", filepath.Base(path), i, example)
		}
		return err
	}))
	require.Greater(t, tried, 120)
}

// examplesIn finds the YAML documents in the comments of a file.
func examplesIn(text string) []string {
	var comments strings.Builder
	for _, line := range strings.Split(text, "\n") {
		if line, ok := strings.CutPrefix(strings.TrimLeft(line, " \t"), "//"); ok {
			comments.WriteString(strings.TrimPrefix(line, " ") + "\n")
		}
	}
	var out []string
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(comments.String(), -1) {
		out = append(out, strings.Split(block[1], "\n---\n")...)
	}
	return out
}
