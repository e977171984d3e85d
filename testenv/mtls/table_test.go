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
	for row := range scenarioRows(t) {
		rows[row] = true
	}
	for row := 1; row <= 49; row++ {
		require.Contains(t, rows, strconv.Itoa(row))
	}
}

// scenarioRows are the rows of testenv/scenario/README.md, whose tests have their
// package before their name; without one it is that of the name before, at first
// testenv/scenario.
func scenarioRows(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../scenario/README.md")
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^\| (\d+) \|[^|]*\|([^|]*)\|([^|]*)\|$`)
	named := regexp.MustCompile("`(?:([a-z/]+)\\.)?((?:Test|Fuzz)[A-Za-z0-9]+)`")
	rows := map[string]bool{}
	for _, cells := range line.FindAllStringSubmatch(string(text), -1) {
		rows[cells[1]] = true
		for _, cell := range cells[2:] {
			folder := "testenv/scenario"
			for _, name := range named.FindAllStringSubmatch(cell, -1) {
				if name[1] != "" {
					folder = name[1]
				}
				require.Contains(t, testsOf(t, folder), "\nfunc "+name[2]+"(", "row %s", cells[1])
			}
		}
	}
	return rows
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
