package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Formats of -o.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
)

func unknownFormat(got string, known ...string) error {
	return usageError{fmt.Errorf("--output %q is not one of %s", got, strings.Join(known, ", "))}
}

func (e environment) print(text string) error {
	if _, err := fmt.Fprint(e.out, text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (e environment) printJSON(v any) error {
	enc := json.NewEncoder(e.out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}
