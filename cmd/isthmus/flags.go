package main

import (
	"strings"

	"github.com/spf13/pflag"
)

// unknownFlags lists the flags in a command line that a set does not know, by
// name as they were written. Commands that stand in for istiod's take its
// flags; those that mean nothing here must not keep the process from starting,
// and must not pass in silence.
func unknownFlags(fs *pflag.FlagSet, args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			continue
		}
		name, _, hasValue := strings.Cut(arg, "=")
		f := lookUp(fs, name)
		if f == nil {
			out = append(out, name)
		} else if !hasValue && f.NoOptDefVal == "" {
			i++ // the next argument is its value, whatever it looks like
		}
	}
	return out
}

func lookUp(fs *pflag.FlagSet, name string) *pflag.Flag {
	if long, ok := strings.CutPrefix(name, "--"); ok {
		return fs.Lookup(long)
	}
	return fs.ShorthandLookup(name[1:2])
}
