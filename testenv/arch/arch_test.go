// Package arch holds the test that keeps ARCHITECTURE.md and the import
// directions true. It has no code of its own.
package arch

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/isthmus-mesh/isthmus/"

// mayImport says for every top-level folder which others it may import. What
// is not listed is forbidden.
func mayImport() map[string][]string {
	return map[string][]string{
		"mesh":         {},
		"registry":     {"mesh"},
		"multicluster": {"mesh", "registry"},
		"xds":          {"mesh", "registry"},
		"ca":           {"mesh"},
		"manifests":    {},
		"cmd":          {"mesh", "registry", "multicluster", "xds", "ca", "manifests"},
		"testenv":      {"mesh", "registry", "multicluster", "xds", "ca", "manifests", "cmd"},
	}
}

// forbidden third-party imports by folder prefix; tests may use what they like.
func forbidden() map[string][]string {
	return map[string][]string{
		"mesh/.":      {"k8s.io/", "github.com/envoyproxy/"},
		"mesh/inject": {"k8s.io/client-go", "github.com/envoyproxy/"}, // pods are its business, API servers are not
		"xds":         {"k8s.io/"},
		"registry/.":  {"k8s.io/", "github.com/envoyproxy/"},
	}
}

type file struct {
	folder  string // "registry/kube"
	path    string
	imports []string
}

func sources(t *testing.T) []file {
	t.Helper()
	var out []file
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel("../..", path)
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || rel == "testenv/kube" || rel == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		src := file{folder: filepath.ToSlash(filepath.Dir(rel)), path: rel}
		for _, i := range f.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			src.imports = append(src.imports, p)
		}
		out = append(out, src)
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, out)
	return out
}

func TestImportsFollowTheDirections(t *testing.T) {
	allowed := mayImport()
	for _, f := range sources(t) {
		top, _, _ := strings.Cut(f.folder, "/")
		may, known := allowed[top]
		require.True(t, known, "%s: folder %q is not one of the project's; see ARCHITECTURE.md", f.path, top)
		for _, i := range f.imports {
			require.False(t, strings.HasPrefix(i, "istio.io/istio"), "%s imports %s, which we replace", f.path, i)
			rest, ours := strings.CutPrefix(i, module)
			to, _, _ := strings.Cut(rest, "/")
			if !ours || to == top || strings.HasSuffix(f.path, "_test.go") && to == "testenv" {
				continue
			}
			require.Contains(t, may, to, "%s imports %s against the directions", f.path, i)
		}
	}
}

func TestPurePackagesStayPure(t *testing.T) {
	for _, f := range sources(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		for folder, deny := range forbidden() {
			root, exact := strings.CutSuffix(folder, "/.")
			if f.folder != root && (exact || !strings.HasPrefix(f.folder, folder+"/")) {
				continue
			}
			for _, i := range f.imports {
				for _, d := range deny {
					require.False(t, strings.HasPrefix(i, d), "%s imports %s", f.path, i)
				}
			}
		}
	}
}

func TestArchitectureNamesEveryPackage(t *testing.T) {
	page, err := os.ReadFile("../../ARCHITECTURE.md")
	require.NoError(t, err)
	for _, f := range sources(t) {
		if !strings.Contains(string(page), "`"+f.folder+"`") { // require.Contains would print the whole page
			t.Errorf("ARCHITECTURE.md does not mention the package of %s", f.path)
		}
	}
}
