package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/client"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// drainPoll is the time between looks at whether a weight is in force.
const drainPoll = 200 * time.Millisecond

// drainFlags say which cluster's secret is written, and who is asked about it.
type drainFlags struct {
	kubeconfig, context, namespace, address string
	dryRun                                  bool
	timeout                                 time.Duration
}

func (f *drainFlags) bind(fs *pflag.FlagSet) {
	fs.StringVarP(&f.kubeconfig, "kubeconfig", "c", "", "kubeconfig of the primary; default: $KUBECONFIG, else ~/.kube/config")
	fs.StringVar(&f.context, "context", "", "context of the primary cluster; default: the current one")
	fs.StringVarP(&f.namespace, "istioNamespace", "i", manifests.DefaultNamespace, "namespace of the remote secrets")
	fs.StringVar(&f.address, "address", client.DefaultAddress, "URL of the control plane's http or monitoring port, which is asked before and after")
	fs.BoolVar(&f.dryRun, "dry-run", false, "ask the cluster what would happen, and change nothing")
	fs.DurationVar(&f.timeout, "timeout", time.Minute, "longest wait for the control plane to have taken it up")
}

func (e environment) drainCommand() *cobra.Command {
	var f drainFlags
	var weight uint32
	cmd := &cobra.Command{
		Use:   "drain CLUSTER",
		Short: "Send new requests to other clusters, all or a part of them",
		Long: `Give a remote cluster less than its share of new requests, none unless --weight says otherwise, by
annotation ` + multicluster.WeightAnnotation + ` of its remote secret. The annotation counts before weights.clusters of key
isthmus in ConfigMap istio. The cluster is read on as before, and connections that exist go on.

A drain never turns away what nobody else can answer: the command names the services whose ready
endpoints are in drained clusters alone. The control plane is asked before and after; if it cannot be
reached the weight is written all the same, and a warning says that nobody has confirmed it.`,
		Example: `  kubectl -n istio-system port-forward deploy/istiod 8080 &
  isthmus drain west
  isthmus drain west --weight 25
  isthmus undrain west`,
		Args: between(1, 1, "the name of the cluster"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if weight > mesh.FullWeight {
				return usageError{fmt.Errorf("--weight %d is not a percentage from 0 to 100", weight)}
			}
			return e.weigh(cmd.Context(), mesh.ClusterID(args[0]), &weight, f)
		},
	}
	f.bind(cmd.Flags())
	cmd.Flags().Uint32Var(&weight, "weight", 0, "how much of its share the cluster gets, in percent")
	return cmd
}

func (e environment) undrainCommand() *cobra.Command {
	var f drainFlags
	cmd := &cobra.Command{
		Use:   "undrain CLUSTER",
		Short: "Take back what drain did",
		Long: `Remove annotation ` + multicluster.WeightAnnotation + ` of a cluster's remote secret. The cluster gets all of its
share again, or what weights.clusters of key isthmus in ConfigMap istio gives it.`,
		Example: `  isthmus undrain west`,
		Args:    between(1, 1, "the name of the cluster"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.weigh(cmd.Context(), mesh.ClusterID(args[0]), nil, f)
		},
	}
	f.bind(cmd.Flags())
	return cmd
}

// weigh writes a cluster's weight, nil for none of its own, and shows what the
// control plane makes of it.
func (e environment) weigh(ctx context.Context, id mesh.ClusterID, percent *uint32, f drainFlags) error {
	target, err := install.Connect(f.kubeconfig, f.context)
	if err != nil {
		return fmt.Errorf("the primary: %w", err)
	}
	c, err := client.New(f.address)
	if err != nil {
		return usageError{err}
	}
	defer c.Close()
	asking, stop := context.WithTimeout(ctx, f.timeout)
	defer stop()
	before, blind := clusterOf(asking, c, id)
	if before != nil && before.Primary {
		return fmt.Errorf("weigh cluster %s: it is the primary, which has no remote secret; set weights.clusters.%s in key isthmus of ConfigMap istio", id, id)
	}
	done, err := multicluster.WriteWeight(asking, target.Client(), f.namespace, id, percent, f.dryRun)
	if err != nil {
		return err
	}
	if err := e.print(fmt.Sprintf("Secret %s in cluster %s: %s\n", done.Secret, target.Name, changeText(done, f.dryRun))); err != nil {
		return err
	}
	switch {
	case f.dryRun:
		return e.print("Nothing was changed: this was a dry run.\n")
	case blind != nil:
		e.complain("warning: no control plane has confirmed it: %v\n", blind)
		return nil
	}
	after, err := awaitWeight(asking, c, id, done)
	if err != nil {
		return fmt.Errorf("weigh cluster %s: the secret is written, but the control plane at %s has not taken it up: %w", id, f.address, err)
	}
	o, err := c.Overview(asking)
	if err != nil {
		return err
	}
	return e.print(fmt.Sprintf("Cluster %s before: %s\nCluster %s after:  %s\n", id, inForce(before.Weight), id, inForce(after.Weight)) + strandedText(o, id))
}

// changeText says what became of the annotation.
func changeText(w multicluster.WeightChange, dryRun bool) string {
	say := func(s string) string {
		if s == "" {
			return "none"
		}
		return harmless(s)
	}
	switch {
	case w.Before == w.After:
		return fmt.Sprintf("annotation %s stays %s", multicluster.WeightAnnotation, say(w.After))
	case dryRun:
		return fmt.Sprintf("annotation %s would change from %s to %s", multicluster.WeightAnnotation, say(w.Before), say(w.After))
	}
	return fmt.Sprintf("annotation %s changed from %s to %s", multicluster.WeightAnnotation, say(w.Before), say(w.After))
}

// clusterOf asks the control plane how a cluster is.
func clusterOf(ctx context.Context, c *client.Client, id mesh.ClusterID) (*multicluster.DebugCluster, error) {
	d, err := c.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(d.Clusters, func(x multicluster.DebugCluster) bool { return x.ID == id })
	if i < 0 {
		return nil, fmt.Errorf("it knows no cluster %s", id)
	}
	return &d.Clusters[i], nil
}

// awaitWeight waits until the control plane goes by what was written.
func awaitWeight(ctx context.Context, c *client.Client, id mesh.ClusterID, w multicluster.WeightChange) (*multicluster.DebugCluster, error) {
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for {
		x, err := clusterOf(ctx, c, id)
		if err == nil {
			if weightTaken(x, w) {
				return x, nil
			}
			err = fmt.Errorf("it reads secret %s and says: %s", x.SecretName, inForce(x.Weight))
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

func weightTaken(x *multicluster.DebugCluster, w multicluster.WeightChange) bool {
	annotated := x.Weight != nil && strings.HasPrefix(x.Weight.From, multicluster.WeightFrom(w.Secret))
	if w.After == "" {
		return !annotated
	}
	return annotated && fmt.Sprint(x.Weight.Percent) == w.After
}

// inForce is a weight in words.
func inForce(w *mesh.Weight) string {
	if w == nil {
		return "gets all of its share"
	}
	return weightNote(*w)
}

// strandedText names the services that a drain does not turn away from a cluster,
// because nothing else is ready.
func strandedText(o serve.Overview, id mesh.ClusterID) string {
	drained := map[mesh.ClusterID]bool{}
	for _, c := range o.Clusters {
		drained[c.ID] = c.Weight != nil && c.Weight.Percent == 0
	}
	if !drained[id] {
		return ""
	}
	var stay []string
	for _, s := range o.Registry.Services {
		here, elsewhere := 0, 0
		for _, c := range s.Clusters {
			switch {
			case c.ID == id:
				here += c.Ready
			case !drained[c.ID]:
				elsewhere += c.Ready
			}
		}
		if here > 0 && elsewhere == 0 {
			stay = append(stay, harmless(string(s.Hostname)))
		}
	}
	if len(stay) == 0 {
		return "Every service with ready endpoints there has some elsewhere.\n"
	}
	const most = 10
	list := strings.Join(stay[:min(len(stay), most)], ", ")
	if len(stay) > most {
		list += fmt.Sprintf(" and %d more", len(stay)-most)
	}
	return fmt.Sprintf("%s ready endpoints in drained clusters alone, so %s still serves: %s\n", count(len(stay), "service has", "services have"), id, list)
}
