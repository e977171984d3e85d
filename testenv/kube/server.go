package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

// issuer of ServiceAccount tokens, the one of a stock cluster.
const issuer = "https://kubernetes.default.svc"

// startupTimeout bounds each step of a start; a loaded CI machine is slow.
const startupTimeout = 2 * time.Minute

// serverFlags are the kube-apiserver flags that we set; all else is as
// kube-apiserver has it.
func serverFlags(port int, serviceCIDR string) []string {
	return []string{
		"--etcd-servers=" + etcdClientURL,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--endpoint-reconciler-type=none",
		"--tls-cert-file=" + serverCertFile,
		"--tls-private-key-file=" + serverKeyFile,
		"--client-ca-file=" + caCertFile,
		"--cert-dir=.",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + tokenKeyFile,
		"--service-account-signing-key-file=" + tokenKeyFile,
		"--service-cluster-ip-range=" + serviceCIDR,
		"--authorization-mode=RBAC",
		"--allow-privileged",
		"--profiling=false",
	}
}

// startServer runs kube-apiserver on the listener and returns when it answers
// /readyz. If it ends before ctx does, it cancels ctx with the reason.
func startServer(
	ctx context.Context, cancel context.CancelCauseFunc,
	listener net.Listener, serviceCIDR string, client *rest.Config,
) (<-chan struct{}, error) {
	server, err := newServer(ctx, listener, serviceCIDR)
	if err != nil {
		return nil, err
	}
	prepared, err := server.PrepareRun()
	if err != nil {
		return nil, fmt.Errorf("prepare server: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := prepared.Run(ctx); err != nil {
			cancel(fmt.Errorf("serve API: %w", err))
			return
		}
		cancel(nil)
	}()
	return done, waitReady(ctx, client)
}

// newServer builds the three chained servers (extensions, core, aggregator)
// from kube-apiserver's own options. It does not use NewAPIServerCommand,
// which installs a signal handler for the whole process.
func newServer(ctx context.Context, listener net.Listener, serviceCIDR string) (*aggregatorapiserver.APIAggregator, error) {
	opts := options.NewServerRunOptions()
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range opts.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := flags.Parse(serverFlags(port, serviceCIDR)); err != nil {
		return nil, fmt.Errorf("parse flags: %w", err)
	}
	opts.SecureServing.Listener = listener
	// A deleted ServiceAccount is refused at once, not ten seconds later.
	opts.Authentication.TokenSuccessCacheTTL = 0
	name, err := cache.NewInformerName("kube-apiserver")
	if err != nil {
		return nil, fmt.Errorf("name informers: %w", err)
	}
	opts.InformerName = name
	if err := opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("set feature gates: %w", err)
	}
	completed, err := opts.Complete(ctx)
	if err != nil {
		return nil, fmt.Errorf("complete options: %w", err)
	}
	if errs := completed.Validate(); len(errs) != 0 {
		return nil, fmt.Errorf("validate options: %w", utilerrors.NewAggregate(errs))
	}
	config, err := app.NewConfig(completed)
	if err != nil {
		return nil, fmt.Errorf("build configuration: %w", err)
	}
	full, err := config.Complete()
	if err != nil {
		return nil, fmt.Errorf("complete configuration: %w", err)
	}
	return app.CreateServerChain(full)
}

// waitReady waits until /readyz says ok.
func waitReady(ctx context.Context, cfg *rest.Config) error {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("build client: %w", err)
	}
	err = poll(ctx, func(ctx context.Context) (bool, error) {
		status := 0
		client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&status)
		return status == http.StatusOK, nil
	})
	if err != nil {
		return fmt.Errorf("wait for /readyz: %w", err)
	}
	return nil
}

// waitUsable waits until pods can be created in the default namespace: its
// ServiceAccount and root CA are there, so the controllers run.
func waitUsable(ctx context.Context, cfg *rest.Config) error {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("build client: %w", err)
	}
	core := client.CoreV1()
	return poll(ctx, func(ctx context.Context) (bool, error) {
		_, err := core.ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			_, err = core.ConfigMaps(metav1.NamespaceDefault).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		}
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
}

func poll(ctx context.Context, condition wait.ConditionWithContextFunc) error {
	return wait.PollUntilContextTimeout(ctx, 25*time.Millisecond, startupTimeout, true, condition)
}
