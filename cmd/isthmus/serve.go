package main

import (
	"context"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
)

func (e environment) serveCommand() *cobra.Command {
	read := map[string]bool{}
	settings, logs := serve.Defaults(knownBy(e.getenv, read)), logOptions{}
	cmd := &cobra.Command{
		Use:     "serve",
		Aliases: []string{"discovery"},
		Short:   "Run the control plane",
		Long: `Run the control plane: read the primary cluster and every remote one, and answer the
proxies of all of them. Flags and variables are those of istiod where istiod has the thing;
flags of istiod that mean nothing here are named in the log and otherwise ignored.

Clusters come from kubeconfigs in Secrets labelled istio/multiCluster=true of the primary
(see: isthmus create-remote-secret), or, with --files, from folders of YAML.`,
		Example: `  # in a pod of the primary cluster, as the chart runs it
  isthmus discovery --monitoringAddr=:15014 --log_output_level=default:info --domain cluster.local

  # outside, with a kubeconfig
  isthmus serve --kubeconfig ~/.kube/config --clusterID east

  # without Kubernetes: every sub-folder of YAML is a cluster
  isthmus serve --files manifests/demo --primary north`,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		Args:               between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The parser skips unknown flags without a word, so they are looked for again.
			ignored := ignored{flags: unknownFlags(cmd.Flags(), e.args)}
			if e.environ != nil {
				ignored.variables = unknownVariables(e.environ(), read)
			}
			return e.serve(cmd.Context(), settings, logs, ignored)
		},
	}
	settings.Bind(cmd.Flags())
	logs.bind(cmd.Flags(), "default:info")
	return cmd
}

// ignored is what in the command line and the environment means nothing here.
type ignored struct{ flags, variables []string }

func (e environment) serve(ctx context.Context, settings serve.Settings, logs logOptions, unknown ignored) error {
	log, err := logs.logger(e.err)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // stderr cannot be synced everywhere
	if e.adoptKlog != nil {
		e.adoptKlog(log)
	}
	log.Info("isthmus starts", zap.String("version", e.build.Line()), zap.String("primary", settings.Primary))
	for _, name := range unknown.flags {
		log.Warn("flag is not known and is ignored", zap.String("flag", name))
	}
	for _, name := range unknown.variables {
		log.Warn("variable of istiod means nothing here and is ignored", zap.String("variable", name))
	}
	control, err := serve.New(settings, e.build, log)
	if err != nil {
		return err
	}
	if err := control.Run(ctx); err != nil {
		return err
	}
	log.Info("isthmus ended")
	return nil
}
