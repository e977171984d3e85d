package main

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/ca"
)

func (e environment) caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Make a root and issuing certificates for the clusters",
		Long: `Make the trust of a mesh by hand: one root that stays offline, and one intermediate for each
primary cluster. Whoever has no authority of their own starts here; whoever has one puts its
intermediates into the Secrets instead.

Without any of this a control plane makes a self-signed root for itself. Clusters with control
planes of their own then do not trust one another.`,
		Example: `  isthmus ca root --dir root
  isthmus ca intermediate --root root --cluster east --dir east
  kubectl create secret generic cacerts -n istio-system --from-file=east --context east`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.Help(); err != nil {
				return fmt.Errorf("print help: %w", err)
			}
			return nil
		},
	}
	cmd.AddCommand(e.caRootCommand(), e.caIntermediateCommand())
	return cmd
}

func (e environment) caRootCommand() *cobra.Command {
	o := ca.RootOptions{}
	cmd := &cobra.Command{
		Use:   "root",
		Short: "Make a root to keep offline",
		Long: `Make a root certificate and its key. Keep the directory offline: whoever has ca-key.pem can be
anybody in the mesh. What goes into a cluster is an intermediate.

Nothing that exists is overwritten.`,
		Example: `  isthmus ca root --dir root
  isthmus ca root --dir root --organization "Example" --lifetime 175200h`,
		Args: between(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			if err := checkCA(o.Dir, o.Lifetime); err != nil {
				return err
			}
			cert, err := ca.MakeRoot(o)
			if err != nil {
				return err
			}
			return e.made("Root", cert, o.Dir, "Keep this directory offline. Next: isthmus ca intermediate --root "+o.Dir+" --cluster NAME --dir NAME")
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.Dir, "dir", "", "directory to write to; it is made if it does not exist")
	fs.StringVar(&o.Organization, "organization", "Istio", "organization in the subject")
	fs.StringVar(&o.CommonName, "common-name", "Root CA", "common name in the subject")
	fs.DurationVar(&o.Lifetime, "lifetime", 10*365*24*time.Hour, "lifetime of the root")
	return cmd
}

func (e environment) caIntermediateCommand() *cobra.Command {
	o := ca.IntermediateOptions{}
	cmd := &cobra.Command{
		Use:   "intermediate",
		Short: "Make the issuing certificate of one cluster",
		Long: `Make an intermediate under a root that isthmus ca root made: the content of the Secret cacerts
of one cluster. It signs workloads only, no further authority. Clusters whose intermediates are
under one root trust one another.

The control plane takes a new Secret over while it runs. Nothing that exists is overwritten.`,
		Example: `  isthmus ca intermediate --root root --cluster east --dir east
  kubectl create secret generic cacerts -n istio-system --from-file=east --context east`,
		Args: between(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			if o.RootDir == "" {
				return usageError{fmt.Errorf("--root is missing: name the directory that isthmus ca root wrote")}
			}
			if err := checkCA(o.Dir, o.Lifetime); err != nil {
				return err
			}
			cert, err := ca.MakeIntermediate(o)
			if err != nil {
				return err
			}
			return e.made("Intermediate", cert, o.Dir, "Next: kubectl create secret generic cacerts -n istio-system --from-file="+o.Dir)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.RootDir, "root", "", "directory with the root and its key")
	fs.StringVar(&o.Dir, "dir", "", "directory to write to; it is made if it does not exist")
	fs.StringVar(&o.Cluster, "cluster", "", "cluster that it is for; part of the subject")
	fs.StringVar(&o.Organization, "organization", "Istio", "organization in the subject")
	fs.DurationVar(&o.Lifetime, "lifetime", 2*365*24*time.Hour, "lifetime, at most that of the root")
	return cmd
}

func checkCA(dir string, lifetime time.Duration) error {
	if dir == "" {
		return usageError{fmt.Errorf("--dir is missing: name the directory to write to")}
	}
	if lifetime < time.Hour {
		return usageError{fmt.Errorf("--lifetime %s: want an hour at least", lifetime)}
	}
	return nil
}

// made says what was made and what to do with it.
func (e environment) made(what string, cert *x509.Certificate, dir, next string) error {
	return e.print(fmt.Sprintf("%s %q until %s, in %s\n%s\n", what, cert.Subject.String(), cert.NotAfter.UTC().Format(time.DateOnly), dir, next))
}
