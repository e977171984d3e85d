// Command isthmus-kube is one Kubernetes cluster in one process, for tests: a
// real kube-apiserver, the etcd it needs, and the handful of controllers
// without which API objects do not behave (default ServiceAccounts, token
// Secrets, root CA ConfigMaps, EndpointSlices, namespace deletion, garbage
// collection). There is no kubelet and no scheduler: pods are records.
//
// It listens on loopback only, keeps everything below --dir, prints one line
// "ready URL" on standard output once the API server serves, and ends on
// SIGTERM. Started again with the same --dir it has the same port,
// certificates, tokens and objects, even if it was killed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
)

// Names of the files in the data directory, which is the working directory of
// the process: it keeps the paths of unix sockets below the system's limit.
const (
	kubeconfigFile = "kubeconfig"
	portFile       = "port"
	etcdDir        = "etcd"
)

// stopTimeout bounds an orderly stop; open watches may not hold it up longer.
const stopTimeout = 5 * time.Second

// settings are the command line of isthmus-kube.
type settings struct {
	dir         string // data directory
	port        int    // 0: the one used before, or a free one
	serviceCIDR string // range of ClusterIPs
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "isthmus-kube:", err)
		os.Exit(1)
	}
}

// run starts the cluster, reports it ready on out and blocks until ctx ends
// or a part of the cluster fails.
func run(ctx context.Context, args []string, out io.Writer) error {
	set, err := parse(args)
	if err != nil {
		return err
	}
	if err := enter(set.dir); err != nil {
		return err
	}
	listener, err := listen(set.port)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }() // the server closes it first
	url := "https://" + listener.Addr().String()

	pki, err := loadOrCreatePKI(".")
	if err != nil {
		return err
	}
	if err := pki.writeKubeconfig(kubeconfigFile, filepath.Base(set.dir), url); err != nil {
		return err
	}
	db, err := startEtcd(etcdDir)
	if err != nil {
		return err
	}
	defer db.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Not the server's loopback client: controllers go through the same front
	// door as tests do.
	client := pki.restConfig(url)
	serverDone, err := startServer(ctx, cancel, listener, set.serviceCIDR, client)
	if err != nil {
		return fmt.Errorf("start API server: %w", errors.Join(err, context.Cause(ctx)))
	}
	controllersDone, err := startControllers(ctx, client, pki)
	if err != nil {
		return fmt.Errorf("start controllers: %w", err)
	}
	if err := waitUsable(ctx, client); err != nil {
		return fmt.Errorf("wait for first objects: %w", errors.Join(err, context.Cause(ctx)))
	}
	if _, err := fmt.Fprintln(out, "ready", url); err != nil {
		return fmt.Errorf("report ready: %w", err)
	}

	<-ctx.Done()
	waitAll(stopTimeout, serverDone, controllersDone)
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause // neither a signal nor an orderly end
	}
	return nil
}

// parse reads the command line.
func parse(args []string) (settings, error) {
	var set settings
	flags := flag.NewFlagSet("isthmus-kube", flag.ContinueOnError)
	flags.StringVar(&set.dir, "dir", "", "data directory: certificates, keys, etcd, kubeconfig (required)")
	flags.IntVar(&set.port, "port", 0, "port on 127.0.0.1; 0 takes the one used before in this directory, or a free one")
	flags.StringVar(&set.serviceCIDR, "service-cidr", "10.0.0.0/16", "range that ClusterIPs are taken from")
	if err := flags.Parse(args); err != nil {
		return set, err
	}
	if set.dir == "" {
		return set, errors.New("--dir is required")
	}
	dir, err := filepath.Abs(set.dir)
	if err != nil {
		return set, fmt.Errorf("resolve --dir: %w", err)
	}
	set.dir = dir
	return set, nil
}

// enter makes the data directory the working directory.
func enter(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("enter data directory: %w", err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	return nil
}

// waitAll waits until all channels are closed, at most for the time given.
func waitAll(limit time.Duration, done ...<-chan struct{}) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, c := range done {
		select {
		case <-c:
		case <-timer.C:
			return
		}
	}
}
