// Demokube is the demo on real API servers: it starts one per folder of a
// world, applies the folder's objects, joins the clusters by remote secrets
// that isthmus itself makes, runs isthmus serve on the primary, and shows what
// proxies of each cluster hear. It owns nothing of what it shows.
//
//	go run ./testenv/demokube -isthmus bin/isthmus -world manifests/demo -primary north
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startTimeout bounds everything before the demo stands, without the first
// build of the API server.
const startTimeout = 5 * time.Minute

type options struct {
	isthmus, world, primary string
	from, hosts             string
	once                    bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{}
	flag.StringVar(&o.isthmus, "isthmus", "bin/isthmus", "binary to run")
	flag.StringVar(&o.world, "world", "manifests/demo", "folder whose sub-folders of YAML become clusters")
	flag.StringVar(&o.primary, "primary", "north", "the cluster whose configuration counts")
	flag.StringVar(&o.from, "from", "web", "service whose pods are the proxies, one in each cluster")
	flag.StringVar(&o.hosts, "hosts", "checkout,catalog,billing,legacy", "services to show the answers for")
	flag.BoolVar(&o.once, "once", false, "show once, clean up and exit")
	flag.Parse()
	if err := run(ctx, o); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demokube:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	binary, err := filepath.Abs(o.isthmus)
	if err != nil {
		return fmt.Errorf("find binary: %w", err)
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("find binary: %w; build it with: make build", err)
	}
	work, err := os.MkdirTemp("", "isthmus-demokube-")
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	d := &demo{options: o, work: work, isthmus: binary, began: time.Now()}
	defer func() { err = errors.Join(err, d.end()) }()

	start, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, step := range []func(context.Context) error{d.startClusters, d.join, d.serve, d.connect, d.show} {
		if err := step(start); err != nil {
			return err
		}
	}
	if o.once {
		return nil
	}
	d.hint()
	select {
	case <-ctx.Done():
		fmt.Println("\ncleaning up")
		return nil
	case <-d.server.ended:
		return fmt.Errorf("isthmus serve ended by itself: %w\n%s", d.server.err, d.server.tail())
	}
}

// hint tells what to do while the demo runs.
func (d *demo) hint() {
	remote := d.clusters[len(d.clusters)-1].Name()
	for _, c := range d.clusters {
		if c.Name() == "island" {
			remote = c.Name()
		}
	}
	fmt.Printf(`
The page:  http://%[1]s/debug/

The clusters are real; use kubectl on them:
%[2]s
Things to try, with the page open or asking again with explain:
  kubectl --kubeconfig %[3]s -n shop delete pod checkout-v2-0
      the weight of the gateway of %[4]s goes down
  kubectl --kubeconfig %[5]s -n istio-system delete secret istio-remote-secret-%[4]s
      %[4]s leaves the mesh, and its endpoints with it
  %[6]s create-remote-secret --kubeconfig %[3]s --name %[4]s | kubectl --kubeconfig %[5]s apply -f -
      it joins again
  %[6]s explain --address http://%[1]s %[7]s checkout
  %[6]s status --address http://%[1]s -o wide

The log is %[8]s. Ctrl-C ends everything and cleans up.
`, d.server.http, d.kubectls(), d.kubeconfig(remote), remote, d.kubeconfig(d.primary), d.relative(d.isthmus), d.proxies[0].ref, d.server.log)
}

func (d *demo) kubectls() string {
	var b strings.Builder
	for _, c := range d.clusters {
		fmt.Fprintf(&b, "  kubectl --kubeconfig %s get pods -A\n", d.kubeconfig(c.Name()))
	}
	return b.String()
}

func (d *demo) relative(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rest, ok := strings.CutPrefix(path, wd+"/"); ok {
			return rest
		}
	}
	return path
}
