package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/manifests"
)

func (e environment) manifestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "manifest",
		Short: "Print what install applies, or how a cluster differs from it",
		Long: `Look at what install would do without a cluster (generate), or beside what a cluster has (diff).
Files and values are those of install.`,
		Example: `  isthmus manifest generate -f values.yaml
  isthmus manifest diff -f values.yaml --context east`,
		Args: between(0, 0, ""),
	}
	cmd.AddCommand(e.manifestGenerateCommand(), e.manifestDiffCommand())
	return cmd
}

func (e environment) manifestGenerateCommand() *cobra.Command {
	var plan planFlags
	var crds bool
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Print the objects that install applies, as YAML",
		Long: `Render what install applies, in the order in which it does, without asking any cluster. Fields that
have no meaning are named on stderr.`,
		Example: `  isthmus manifest generate --set global.multiCluster.clusterName=east > primary.yaml
  isthmus manifest generate -f istio-operator.yaml --crds | kubectl apply --server-side -f -`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return e.manifestGenerate(cmd, plan, crds) },
	}
	plan.bind(cmd.Flags())
	cmd.Flags().BoolVar(&crds, "crds", false, "also print the definitions of Istio's custom resources")
	return cmd
}

func (e environment) manifestGenerate(cmd *cobra.Command, f planFlags, crds bool) error {
	p, err := e.plan(cmd, f)
	if err != nil {
		return err
	}
	objects, err := p.Objects()
	if err != nil {
		return err
	}
	if crds {
		definitions, err := manifests.CRDs()
		if err != nil {
			return err
		}
		objects = append(definitions, objects...)
	}
	text, err := manifests.Encode(objects)
	if err != nil {
		return err
	}
	return e.print(string(text))
}

// errDiffers makes manifest diff exit with 1, as diff does.
var errDiffers = errors.New("there are differences")

func (e environment) manifestDiffCommand() *cobra.Command {
	var plan planFlags
	var cluster clusterFlags
	cmd := &cobra.Command{
		Use:   "diff [FILE FILE]",
		Short: "Print how a cluster differs from what install would apply, or how two files of objects differ",
		Long: `Without arguments, ask the cluster what install would change, and print it; nothing is changed.
With two files of YAML, compare the objects in them. The exit code is 1 if there are differences.`,
		Example: `  isthmus manifest diff -f values.yaml --context east
  isthmus manifest diff before.yaml after.yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 0 && len(args) != 2 {
				return usageError{fmt.Errorf("isthmus manifest diff needs no argument or two files, got %d arguments", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return e.manifestDiff(cmd, plan, cluster, args) },
	}
	plan.bind(cmd.Flags())
	cluster.bindCluster(cmd.Flags())
	return cmd
}

func (e environment) manifestDiff(cmd *cobra.Command, f planFlags, c clusterFlags, files []string) error {
	text, err := "", error(nil)
	if len(files) == 2 {
		text, err = diffFiles(files[0], files[1])
	} else {
		text, err = e.diffCluster(cmd, f, c)
	}
	if err != nil || text == "" {
		return err
	}
	if err := e.print(text); err != nil {
		return err
	}
	return errDiffers
}

func (e environment) diffCluster(cmd *cobra.Command, f planFlags, c clusterFlags) (string, error) {
	p, err := e.plan(cmd, f)
	if err != nil {
		return "", err
	}
	i, err := c.installer(e)
	if err != nil {
		return "", err
	}
	i.Out = nil
	return i.Diff(cmd.Context(), p)
}

func diffFiles(a, b string) (string, error) {
	before, err := os.ReadFile(a)
	if err != nil {
		return "", fmt.Errorf("read objects: %w", err)
	}
	after, err := os.ReadFile(b)
	if err != nil {
		return "", fmt.Errorf("read objects: %w", err)
	}
	x, err := manifests.Decode(bytes.NewReader(before))
	if err != nil {
		return "", fmt.Errorf("read objects: %s: %w", a, err)
	}
	y, err := manifests.Decode(bytes.NewReader(after))
	if err != nil {
		return "", fmt.Errorf("read objects: %s: %w", b, err)
	}
	return install.DiffObjects(x, y)
}
