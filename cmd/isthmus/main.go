// Command isthmus is one control plane for many Kubernetes clusters, and the
// command line to look at it. This package owns the command line only: flags,
// logging, and how things are printed. Wiring is in package serve.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	e := environment{out: os.Stdout, err: os.Stderr, getenv: os.Getenv, environ: os.Environ, build: buildOf(version), adoptKlog: adoptKlog}
	os.Exit(e.run(ctx, os.Args[1:]))
}

// buildOf adds what the toolchain recorded to the version.
func buildOf(version string) serve.Build {
	b := serve.Build{Version: version, Revision: "unknown", Status: "Clean"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.Revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			b.Status = "Modified"
		}
	}
	return b
}
