package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
)

// Exit codes of the process.
const (
	exitOK = 0
	// exitFailed: the command was understood and failed.
	exitFailed = 1
	// exitUsage: the command line was not understood.
	exitUsage = 2
)

// environment is all that commands know of the process they run in.
type environment struct {
	out, err io.Writer
	getenv   func(string) string
	// environ lists all variables, to name those that mean nothing; may be nil.
	environ func() []string
	build   serve.Build
	// adoptKlog is told of the log of a control plane, once; nil does nothing.
	adoptKlog func(*zap.Logger)
	// args is the command line without the program's name.
	args []string
}

// run executes one command line and returns the exit code.
func (e environment) run(ctx context.Context, args []string) int {
	e.args = args
	root := e.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), !cmd.Runnable():
		e.complain("isthmus: %s\nTry: %s --help\n", message(err), cmd.CommandPath())
		return exitUsage
	}
	e.complain("isthmus: %s\n", message(err))
	return exitFailed
}

// message is the text of an error without the empty lines that a list of errors
// ends with.
func message(err error) string { return strings.TrimSpace(err.Error()) }

// complain writes to stderr; if that is gone there is nobody to tell.
func (e environment) complain(format string, args ...any) {
	_, _ = fmt.Fprintf(e.err, format, args...)
}

// usageError is an error in the command line itself.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func (e environment) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "isthmus",
		Short: "One control plane for many Kubernetes clusters",
		Long: `Isthmus reads many Kubernetes clusters and tells every Envoy how to reach every
service of all of them: pod IPs on its own network, east-west gateways for the others.`,
		Example: `  # see it work, without Kubernetes
  isthmus demo --files manifests/demo --primary north

  # run it, and look at it from another terminal
  isthmus serve --files manifests/demo --primary north
  isthmus status`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetOut(e.out)
	root.SetErr(e.err)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(e.serveCommand(), e.demoCommand(), e.statusCommand(), e.explainCommand(),
		e.remoteSecretCommand(), e.caCommand(), e.injectCommand(), e.versionCommand(),
		e.installCommand(), e.uninstallCommand(), e.manifestCommand(),
		e.joinCommand(), e.leaveCommand(), e.drainCommand(), e.undrainCommand())
	return root
}

// between checks the number of arguments and says in the error what they are
// called.
func between(low, high int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= low && len(args) <= high {
			return nil
		}
		if high == 0 {
			return usageError{fmt.Errorf("%s takes no arguments, got %q", commandName(cmd), args)}
		}
		if len(args) == 0 {
			return usageError{fmt.Errorf("%s needs %s", commandName(cmd), names)}
		}
		return usageError{fmt.Errorf("%s needs %s, got %q", commandName(cmd), names, args)}
	}
}

// commandName is the name of a command without that of the program, which
// begins every message already.
func commandName(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}
