package mtls

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTableIsTrue: every test that README.md names is in the package that it
// names, and no row is left out.
func TestTableIsTrue(t *testing.T) {
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(text), "| row |")
	require.True(t, ok)
	quoted := regexp.MustCompile("`([^`]+)`")
	rows := map[string]bool{}
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		if row := strings.TrimSpace(cells[1]); row != "" {
			rows[row] = true
		}
		source := testsOf(t, quoted.FindStringSubmatch(cells[3])[1])
		for _, name := range quoted.FindAllStringSubmatch(cells[4], -1) {
			require.Contains(t, source, "\nfunc "+name[1]+"(", "%s", line)
		}
	}
	for row := 20; row <= 37; row++ {
		require.Contains(t, rows, strconv.Itoa(row))
	}
	require.Contains(t, rows, "39")
	require.Contains(t, rows, "49")
}

// testsOf is the text of a package's tests.
func testsOf(t *testing.T, folder string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", folder, "*_test.go"))
	require.NoError(t, err)
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		all.Write(text)
	}
	return all.String()
}
