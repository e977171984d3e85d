package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/manifests"
)

// planFlags are the flags that say what is to be installed.
type planFlags struct {
	files, set                            []string
	profile, revision, namespace, release string
}

func (f *planFlags) bind(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.files, "filename", "f", nil, "values file or IstioOperator file, - is standard input; may be repeated, later ones go over earlier ones")
	fs.StringArrayVarP(&f.set, "set", "s", nil, "one value, PATH=VALUE, such as global.network=network-1; may be repeated")
	fs.StringVar(&f.profile, "profile", "", "primary, remote, eastwest, or a profile of Istio's; default: what the files say, else primary")
	fs.StringVarP(&f.revision, "revision", "r", "", "revision of the control plane")
	fs.StringVarP(&f.namespace, "istioNamespace", "i", "", "system namespace; default: what the files say, else "+manifests.DefaultNamespace)
	fs.StringVar(&f.release, "release", "", "name under which the objects are found again; default: by chart and revision")
}

// plan reads the files, and tells on stderr what in them has no meaning.
func (e environment) plan(cmd *cobra.Command, f planFlags) (install.Plan, error) {
	p, err := install.Input{Files: f.files, Stdin: cmd.InOrStdin(), Set: f.set, Profile: f.profile, Revision: f.revision,
		Namespace: f.namespace, Release: f.release, Version: e.imageVersion()}.Plan()
	for _, w := range p.Warnings {
		e.complain("warning: %s\n", w)
	}
	return p, err
}

// imageVersion is the tag of this build's image; "" for builds that have none.
func (e environment) imageVersion() string {
	if e.build.Version == "dev" || e.build.Status != "Clean" {
		return ""
	}
	return e.build.Version
}

// clusterFlags say which cluster is meant, and how it is written to.
type clusterFlags struct {
	kubeconfig, context   string
	dryRun, force, noWait bool
	timeout               time.Duration
}

func (f *clusterFlags) bindCluster(fs *pflag.FlagSet) {
	fs.StringVarP(&f.kubeconfig, "kubeconfig", "c", "", "kubeconfig of the cluster; default: $KUBECONFIG, else ~/.kube/config")
	fs.StringVar(&f.context, "context", "", "context in the kubeconfig; default: its current one")
}

func (f *clusterFlags) installer(e environment) (*install.Installer, error) {
	t, err := install.Connect(f.kubeconfig, f.context)
	if err != nil {
		return nil, err
	}
	return &install.Installer{Target: t, Out: e.out, DryRun: f.dryRun, Force: f.force, NoWait: f.noWait, Timeout: f.timeout}, nil
}

func (e environment) installCommand() *cobra.Command {
	var plan planFlags
	var cluster clusterFlags
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the control plane, a remote's part or an east-west gateway into a cluster",
		Long: `Install into a cluster: the primary (the control plane and everything around it), a remote
(the account that the primary reads it as, and the way to the primary), or an east-west gateway.

The values are those of the Helm charts, under the names that Istio's charts use. IstioOperator
files are read too: every field that has no meaning here is named in a warning.

The cluster is looked at before anything is changed: version, rights rule by rule, definitions,
clocks, and objects of the same names that are somebody else's. Running it again changes what has
changed in the files, and removes what they do not have any more.`,
		Example: `  # the primary: cluster "east" of network "network-1"
  isthmus install --set global.multiCluster.clusterName=east --set global.network=network-1

  # what would happen, with the file that istiod was installed with
  isthmus install -f istio-operator.yaml --dry-run

  # beside istiod, as a revision of its own
  isthmus install --revision isthmus -f values.yaml

  # an east-west gateway for the network
  isthmus install --profile eastwest --set networkGateway=network-1`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return e.install(cmd, plan, cluster) },
	}
	plan.bind(cmd.Flags())
	cluster.bindCluster(cmd.Flags())
	fs := cmd.Flags()
	fs.BoolVar(&cluster.dryRun, "dry-run", false, "ask the cluster what would happen, and change nothing")
	fs.BoolVar(&cluster.force, "force", false, "take over objects and fields that are somebody else's")
	fs.BoolVar(&cluster.noWait, "no-wait", false, "return when everything is applied, without waiting until it works")
	fs.DurationVar(&cluster.timeout, "timeout", 5*time.Minute, "longest wait for each part to work")
	return cmd
}

func (e environment) install(cmd *cobra.Command, f planFlags, c clusterFlags) error {
	p, err := e.plan(cmd, f)
	if err != nil {
		return err
	}
	i, err := c.installer(e)
	if err != nil {
		return err
	}
	if err := i.Install(cmd.Context(), p); err != nil {
		return err
	}
	if c.dryRun {
		return e.print("Nothing was changed: this was a dry run.\n")
	}
	for _, x := range p.Installations {
		if err := e.print(fmt.Sprintf("Installed %s in namespace %s of cluster %s (release %s).\n", x.Chart, x.Namespace, i.Target.Name, x.Release)); err != nil {
			return err
		}
	}
	return nil
}

func (e environment) uninstallCommand() *cobra.Command {
	var plan planFlags
	var cluster clusterFlags
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove from a cluster exactly what install put there",
		Long: `Remove the objects of one installation, which are known by their labels, and nothing else. The
keys of the CA, the roots that proxies trust and the definitions of custom resources stay: the
command names them.`,
		Example: `  isthmus uninstall --context east
  isthmus uninstall --context east --revision isthmus
  isthmus uninstall --context west --profile remote --dry-run`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return e.uninstall(cmd.Context(), plan, cluster) },
	}
	cluster.bindCluster(cmd.Flags())
	fs := cmd.Flags()
	fs.StringVar(&plan.profile, "profile", "primary", "what to remove: primary, remote or eastwest")
	fs.StringVarP(&plan.revision, "revision", "r", "", "revision of the control plane")
	fs.StringVarP(&plan.namespace, "istioNamespace", "i", manifests.DefaultNamespace, "system namespace")
	fs.StringVar(&plan.release, "release", "", "name of the installation; default: by profile and revision")
	fs.BoolVar(&cluster.dryRun, "dry-run", false, "say what would be removed, and change nothing")
	return cmd
}

func (e environment) uninstall(ctx context.Context, f planFlags, c clusterFlags) error {
	charts := map[string]manifests.Chart{"primary": manifests.Primary, "remote": manifests.Remote, "eastwest": manifests.EastWest}
	chart, ok := charts[f.profile]
	if !ok {
		return usageError{fmt.Errorf("--profile %q is not one of primary, remote, eastwest", f.profile)}
	}
	release := f.release
	if release == "" {
		release = install.ReleaseName(chart, f.revision)
	}
	i, err := c.installer(e)
	if err != nil {
		return err
	}
	return i.Uninstall(ctx, release, f.namespace)
}
