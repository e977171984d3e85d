package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// table is text in columns, as wide as they have to be, with notes between rows.
type table struct {
	rows  [][]string
	notes map[int][]string // by the row that they follow
}

// head starts a table with the names of its columns.
func head(names ...string) *table { return &table{rows: [][]string{names}, notes: map[int][]string{}} }

// note adds a line about the last row, which is not part of the columns.
func (t *table) note(text string) {
	last := len(t.rows) - 1
	t.notes[last] = append(t.notes[last], text)
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// print writes the table, indented. Empty cells are shown as "-", so that
// columns can be told apart by tools too.
func (t *table) print(w io.Writer, indent string) error {
	widths := map[int]int{}
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(orDash(cell)))
		}
	}
	for n, row := range t.rows {
		var b strings.Builder
		b.WriteString(indent)
		for i, cell := range row {
			cell = orDash(cell)
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		lines := []string{strings.TrimRight(b.String(), " ")}
		for _, text := range t.notes[n] {
			lines = append(lines, indent+"  ! "+harmless(text))
		}
		if _, err := fmt.Fprintln(w, strings.Join(lines, "\n")); err != nil {
			return fmt.Errorf("print table: %w", err)
		}
	}
	return nil
}

// orDash is a cell as it is shown. What proxies and objects say of themselves
// may hold anything; control characters would steer the terminal.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return harmless(s)
}

// harmless replaces control characters.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return '?'
		}
		return r
	}, s)
}

// age renders a time span as people say it: two units at most.
func age(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// since is the age of a time, "" if it is not known.
func since(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return age(now.Sub(t))
}

// count renders a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
