package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	joining "github.com/isthmus-mesh/isthmus/cmd/isthmus/join"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// pairFlags say which two clusters are meant, and how they are written to.
type pairFlags struct {
	kubeconfig, primaryContext, primaryName string
	remoteKubeconfig, context               string
	namespace, revision                     string
	dryRun, force                           bool
	timeout                                 time.Duration
}

func (f *pairFlags) bind(fs *pflag.FlagSet) {
	fs.StringVarP(&f.kubeconfig, "kubeconfig", "c", "", "kubeconfig of both clusters; default: $KUBECONFIG, else ~/.kube/config")
	fs.StringVar(&f.context, "context", "", "context of the remote cluster")
	fs.StringVar(&f.remoteKubeconfig, "remote-kubeconfig", "", "kubeconfig of the remote cluster, if it has one of its own")
	fs.StringVar(&f.primaryContext, "primary-context", "", "context of the primary cluster; default: the current one")
	fs.StringVar(&f.primaryName, "primary-name", "", "ID of the primary cluster; default: what its control plane says")
	fs.StringVarP(&f.namespace, "istioNamespace", "i", manifests.DefaultNamespace, "system namespace, the same in both clusters")
	fs.StringVarP(&f.revision, "revision", "r", "", "revision of the control plane")
	fs.BoolVar(&f.dryRun, "dry-run", false, "ask the clusters what would happen, and change nothing")
	fs.BoolVar(&f.force, "force", false, "take over what is somebody else's")
	fs.DurationVar(&f.timeout, "timeout", 5*time.Minute, "longest wait for each step to work")
}

// options connects to both clusters.
func (f *pairFlags) options(e environment, name string) (joining.Options, error) {
	o := joining.Options{Name: name, PrimaryName: f.primaryName, Namespace: f.namespace, Revision: f.revision, Version: e.imageVersion(),
		Out: e.out, DryRun: f.dryRun, Force: f.force, Timeout: f.timeout}
	var err error
	if o.Primary, err = install.Connect(f.kubeconfig, f.primaryContext); err != nil {
		return o, fmt.Errorf("the primary: %w (and --primary-context)", err)
	}
	return o, nil
}

func (f *pairFlags) remote() (*install.Target, error) {
	if f.context == "" && f.remoteKubeconfig == "" {
		return nil, usageError{fmt.Errorf("which cluster is meant? name it with --context or --remote-kubeconfig")}
	}
	file := f.remoteKubeconfig
	if file == "" {
		file = f.kubeconfig
	}
	t, err := install.Connect(file, f.context)
	if err != nil {
		return nil, fmt.Errorf("the remote: %w (or --remote-kubeconfig)", err)
	}
	return t, nil
}

// joinFlags are those of join alone.
type joinFlags struct {
	pairFlags
	files, set             []string
	network, address       string
	server, ca             string
	readOnly, longLived    bool
	noWait                 bool
	weight                 uint32
	lifetime               time.Duration
	insecureKubeconfigOpts string
}

func (e environment) joinCommand() *cobra.Command {
	f := joinFlags{insecureKubeconfigOpts: e.getenv("PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS")}
	cmd := &cobra.Command{
		Use:   "join NAME --context REMOTE",
		Short: "Make a cluster a remote of the primary: one command, no control plane there",
		Long: `Join a cluster to the mesh of a primary. Both clusters are looked at before either is changed:
whether they answer, versions, clocks, rights rule by rule, names and IDs that are taken, the network.

In the remote it makes the account that the primary reads it as, with its rights, the injection webhook
and the Service that lead to the primary, and says on the system namespace who looks after the cluster.
In the primary it makes the remote secret, with a token that ends and that the control plane renews by
itself. Then it waits until the primary has read the cluster and has written its roots there.

It may be repeated: what is there stays as it is. isthmus leave undoes it.`,
		Example: `  # the cluster of context west becomes cluster "west" of network "network-2"
  isthmus join west --context west --network network-2

  # look first
  isthmus join west --context west --network network-2 --dry-run

  # the primary is reached at a given address, and reaches the remote's API server at another than we do
  isthmus join west --context west --pilot-address 203.0.113.10 --server https://10.2.0.1:6443

  # without traffic at first; isthmus undrain west gives it its share
  isthmus join west --context west --weight 0

  # a token that does not end, for API servers without TokenRequest
  isthmus join west --context west --long-lived-token`,
		Args: between(1, 1, "the name of the cluster"),
		RunE: func(cmd *cobra.Command, args []string) error { return e.join(cmd, args[0], f) },
	}
	fs := cmd.Flags()
	f.bind(fs)
	fs.StringVar(&f.network, "network", "", "network of the remote; default: what its system namespace says")
	fs.StringVar(&f.address, "pilot-address", "", "address at which the remote reaches the primary; default: that of a load balancer of istiod or an east-west gateway")
	fs.StringVar(&f.server, "server", "", "URL at which the primary reaches the remote's API server; default: that of the kubeconfig")
	fs.StringVar(&f.ca, "certificate-authority", "", "PEM file that verifies --server; default: the cluster's own authority")
	fs.BoolVar(&f.readOnly, "read-only", false, "the primary reads the cluster, and nothing in it gets a proxy")
	fs.BoolVar(&f.longLived, "long-lived-token", false, "make a token that does not end")
	fs.DurationVar(&f.lifetime, "token-duration", joining.DefaultLifetime, "lifetime of each token; renewed when half of it is over")
	fs.Uint32Var(&f.weight, "weight", mesh.FullWeight, "how much of its share of the traffic the cluster gets, in percent; default: what its remote secret says, else all")
	fs.StringArrayVarP(&f.files, "filename", "f", nil, "values file of the remote's chart; may be repeated")
	fs.StringArrayVarP(&f.set, "set", "s", nil, "one value of the remote's chart, PATH=VALUE; may be repeated")
	fs.BoolVar(&f.noWait, "no-wait", false, "return when everything is applied, without waiting until the primary has read the cluster")
	return cmd
}

func (e environment) join(cmd *cobra.Command, name string, f joinFlags) error {
	o, err := f.options(e, name)
	if err != nil {
		return err
	}
	if o.Remote, err = f.remote(); err != nil {
		return err
	}
	if o.Values, err = e.joinValues(cmd, f); err != nil {
		return err
	}
	if o.Allow, err = multicluster.ParseOptions(f.insecureKubeconfigOpts); err != nil {
		return err
	}
	if cmd.Flags().Changed("weight") {
		o.Weight = &f.weight
	}
	if f.ca != "" {
		if o.CAData, err = os.ReadFile(f.ca); err != nil {
			return fmt.Errorf("read --certificate-authority: %w", err)
		}
	}
	o.Server, o.ReadOnly, o.LongLived, o.TokenLifetime, o.NoWait = f.server, f.readOnly, f.longLived, f.lifetime, f.noWait
	if err := joining.Join(cmd.Context(), o); err != nil {
		return err
	}
	if f.dryRun {
		return e.print("Nothing was changed: this was a dry run.\n")
	}
	return e.print(fmt.Sprintf("Cluster %s has joined. Label a namespace there to get proxies: kubectl --context %s label namespace NAME istio-injection=enabled\n", name, o.Remote.Name))
}

// joinValues reads the values of the remote's chart.
func (e environment) joinValues(cmd *cobra.Command, f joinFlags) (map[string]any, error) {
	p, err := install.Input{Files: f.files, Stdin: cmd.InOrStdin(), Set: f.set, Profile: string(manifests.Remote), Revision: f.revision,
		Namespace: f.namespace}.Plan()
	for _, w := range p.Warnings {
		e.complain("warning: %s\n", w)
	}
	if err != nil {
		return nil, err
	}
	values := p.Installations[0].Values
	if f.network != "" {
		manifests.Set(values, "global.network", f.network)
	}
	if f.address != "" {
		manifests.Set(values, "global.remotePilotAddress", f.address)
	}
	return values, nil
}

func (e environment) leaveCommand() *cobra.Command {
	var f pairFlags
	var gone bool
	cmd := &cobra.Command{
		Use:   "leave NAME --context REMOTE",
		Short: "Take a cluster out of the mesh: undo what join did",
		Long: `Remove what join made in both clusters, and what the primary has written into the remote since: the
remote secret, the account with its rights, webhook, Service, roots, and what was said on the system
namespace. Objects are known by their labels; nothing else is touched.

Proxies that run in the cluster keep what they know until their pods are replaced.`,
		Example: `  isthmus leave west --context west
  isthmus leave west --context west --dry-run

  # the cluster does not exist any more
  isthmus leave west --remote-gone`,
		Args: between(1, 1, "the name of the cluster"),
		RunE: func(cmd *cobra.Command, args []string) error { return e.leave(cmd.Context(), args[0], f, gone) },
	}
	f.bind(cmd.Flags())
	cmd.Flags().BoolVar(&gone, "remote-gone", false, "the remote does not exist any more: remove only what is in the primary")
	return cmd
}

func (e environment) leave(ctx context.Context, name string, f pairFlags, gone bool) error {
	o, err := f.options(e, name)
	if err != nil {
		return err
	}
	if !gone {
		if o.Remote, err = f.remote(); err != nil {
			return err
		}
	}
	if err := joining.Leave(ctx, o); err != nil {
		return err
	}
	if f.dryRun {
		return e.print("Nothing was changed: this was a dry run.\n")
	}
	return e.print(fmt.Sprintf("Cluster %s has left.\n", name))
}
