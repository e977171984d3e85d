package main

import (
	"fmt"
	"strings"
)

// diffContext is how many unchanged lines surround a change.
const diffContext = 3

// diffLine is a line of a diff: ' ' in both texts, '-' in the first, '+' in the second.
type diffLine struct {
	mark byte
	text string
}

// unifiedDiff returns what differs between two texts in the format of diff -u,
// "" if nothing does.
func unifiedDiff(nameA, nameB, a, b string) string {
	if a == b {
		return ""
	}
	lines := diffLines(strings.Split(strings.TrimSuffix(a, "\n"), "\n"), strings.Split(strings.TrimSuffix(b, "\n"), "\n"))
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", nameA, nameB)
	atA, atB := 1, 1
	for i := 0; i < len(lines); {
		if lines[i].mark == ' ' {
			i, atA, atB = i+1, atA+1, atB+1
			continue
		}
		start := max(0, i-diffContext)
		end := hunkEnd(lines, i)
		writeHunk(&out, lines[start:end], atA-(i-start), atB-(i-start))
		for ; i < end; i++ {
			if lines[i].mark != '+' {
				atA++
			}
			if lines[i].mark != '-' {
				atB++
			}
		}
	}
	return out.String()
}

// hunkEnd is the end of the hunk that begins with a change: changes that are
// less than two contexts apart belong together.
func hunkEnd(lines []diffLine, i int) int {
	last := i
	for j := i; j < len(lines) && j-last <= 2*diffContext; j++ {
		if lines[j].mark != ' ' {
			last = j
		}
	}
	return min(len(lines), last+1+diffContext)
}

func writeHunk(out *strings.Builder, hunk []diffLine, atA, atB int) {
	countA, countB := 0, 0
	for _, l := range hunk {
		if l.mark != '+' {
			countA++
		}
		if l.mark != '-' {
			countB++
		}
	}
	fmt.Fprintf(out, "@@ -%d,%d +%d,%d @@\n", atA, countA, atB, countB)
	for _, l := range hunk {
		out.WriteByte(l.mark)
		out.WriteString(l.text)
		out.WriteByte('\n')
	}
}

// maxDiff bounds the table of the comparison: longer texts are shown as one change.
const maxDiff = 20_000_000

// diffLines compares texts line by line, by their longest common subsequence.
func diffLines(a, b []string) []diffLine {
	var out []diffLine
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		out = append(out, diffLine{' ', a[head]})
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	end := a[len(a)-tail:]
	a, b = a[head:len(a)-tail], b[head:len(b)-tail]
	table := commonLengths(a, b)
	i, j := 0, 0
	for table != nil && i < len(a) && j < len(b) {
		switch {
		case a[i] == b[j]:
			out = append(out, diffLine{' ', a[i]})
			i, j = i+1, j+1
		case table[i+1][j] >= table[i][j+1]:
			out = append(out, diffLine{'-', a[i]})
			i++
		default:
			out = append(out, diffLine{'+', b[j]})
			j++
		}
	}
	for ; i < len(a); i++ {
		out = append(out, diffLine{'-', a[i]})
	}
	for ; j < len(b); j++ {
		out = append(out, diffLine{'+', b[j]})
	}
	for _, l := range end {
		out = append(out, diffLine{' ', l})
	}
	return out
}

// commonLengths[i][j] is the length of the longest common subsequence of a[i:]
// and b[j:]; nil if the texts are too long for that.
func commonLengths(a, b []string) [][]int32 {
	if (len(a)+1)*(len(b)+1) > maxDiff {
		return nil
	}
	table := make([][]int32, len(a)+1)
	for i := range table {
		table[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				table[i][j] = table[i+1][j+1] + 1
			} else {
				table[i][j] = max(table[i+1][j], table[i][j+1])
			}
		}
	}
	return table
}
