package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/registry"
)

// TestGolden translates every testdata/golden/NAME.yaml and compares the states
// and problems with NAME.txt. The file name says the concept; a name that begins
// with "primary" or "derive" sets that option.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/golden/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, inputs)
	for _, in := range inputs {
		name := strings.TrimSuffix(filepath.Base(in), ".yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(in)
			require.NoError(t, err)
			problems := registry.NewProblems(nil)
			tr := NewTranslator(TranslatorConfig{Cluster: "east", Problems: problems,
				Primary: strings.HasPrefix(name, "primary"), DeriveEndpoints: strings.HasPrefix(name, "derive")})
			for _, o := range objectsOf(t, string(text)) {
				require.True(t, tr.Set(o))
			}
			got := render(tr.Snapshot()) + renderProblems(problems)
			file := strings.TrimSuffix(in, ".yaml") + ".txt"
			if *update {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644)) //nolint:gosec // test data
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}
