package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// remoteSecretTimeout bounds the whole command.
const remoteSecretTimeout = 2 * time.Minute

// Types of secrets.
const (
	kindRemote = "remote"
	kindConfig = "config"
)

// Where an external control plane looks for the cluster with its configuration,
// and the account that chart isthmus makes for it there.
const (
	configSecretName = "istio-kubeconfig"
	configSecretKey  = "config"
	configAccount    = "istiod"
)

// remoteSecretFlags are the flags of create-remote-secret, named as istioctl
// names them.
type remoteSecretFlags struct {
	name, kubeconfig, context   string
	namespace, istioNamespace   string
	server, account, ca         string
	kind, auth                  string
	tokenDuration               time.Duration
	createAccount               bool
	insecureKubeconfigOverrides string
}

func (e environment) remoteSecretCommand() *cobra.Command {
	f := remoteSecretFlags{insecureKubeconfigOverrides: e.getenv("PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS")}
	cmd := &cobra.Command{
		Use:   "create-remote-secret",
		Short: "Print the Secret that joins a cluster to the mesh",
		Long: `Print the Secret that lets the primary's control plane read a remote cluster. The command
speaks to the remote cluster only; apply what it prints in the primary.

It makes a service account with read rights in the remote cluster unless there is one, and a
token of it: one without an end, or, with --token-duration, one that ends and is to be renewed
by running the command again. The control plane takes a renewed Secret without a gap.`,
		Example: `  # join cluster west to the mesh whose primary is east
  isthmus create-remote-secret --context west --name west | kubectl apply -f - --context east

  # with a token that ends, and an address that the primary can reach
  isthmus create-remote-secret --context west --name west --token-duration 720h \
    --server https://west.example.com:6443 | kubectl apply -f - --context east

  # let a control plane in cluster admin take its configuration from cluster east, where
  # chart isthmus was installed with global.configCluster=true
  isthmus create-remote-secret --type config --context east --name east | kubectl apply -f - --context admin`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return e.remoteSecret(cmd.Context(), f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.name, "name", "", "ID of the cluster in the mesh; default: the UID of its namespace kube-system")
	fs.StringVarP(&f.kubeconfig, "kubeconfig", "c", "", "kubeconfig of the remote cluster; default: $KUBECONFIG, else ~/.kube/config")
	fs.StringVar(&f.context, "context", "", "context in the kubeconfig; default: its current one")
	fs.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the service account and of the Secret; default: --istioNamespace")
	fs.StringVarP(&f.istioNamespace, "istioNamespace", "i", multicluster.SystemNamespace, "system namespace")
	fs.StringVar(&f.server, "server", "", "URL under which the primary reaches the API server; default: that of the kubeconfig")
	fs.StringVar(&f.account, "service-account", multicluster.ReaderAccount, "service account that the primary reads the cluster as")
	fs.StringVar(&f.ca, "certificate-authority", "", "PEM file that verifies --server; default: the cluster's own authority")
	fs.DurationVar(&f.tokenDuration, "token-duration", 0, "lifetime of the token, 0 = it does not end")
	fs.BoolVar(&f.createAccount, "create-service-account", true, "create the service account and its rights unless they exist")
	fs.StringVar(&f.kind, "type", kindRemote, "remote: the primary reads this cluster; config: an external control plane takes its configuration from it")
	fs.StringVar(&f.auth, "auth-type", "bearer-token", "how the primary proves itself; only bearer-token is there")
	return cmd
}

func (f *remoteSecretFlags) check() error {
	switch {
	case f.kind != kindRemote && f.kind != kindConfig:
		return usageError{fmt.Errorf("--type %q is not one of remote, config", f.kind)}
	case f.auth != "bearer-token":
		return usageError{fmt.Errorf("--auth-type %s: only bearer-token is supported; the control plane runs no plugins named in a kubeconfig", f.auth)}
	case f.tokenDuration < 0 || f.tokenDuration > 0 && f.tokenDuration < 10*time.Minute:
		return usageError{fmt.Errorf("--token-duration %s: API servers issue tokens of at least 10m; 0 asks for one without an end", f.tokenDuration)}
	}
	return nil
}

func (e environment) remoteSecret(ctx context.Context, f remoteSecretFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, remoteSecretTimeout)
	defer cancel()
	options, err := f.options()
	if err != nil {
		return err
	}
	secret, err := multicluster.CreateRemoteSecret(ctx, options)
	if err != nil {
		return err
	}
	reads, place := "read", "primary cluster"
	if f.kind == kindConfig {
		reads, place = "configure", "cluster that the control plane runs in"
		makeConfigSecret(secret)
	}
	text, err := multicluster.Encode(secret)
	if err != nil {
		return err
	}
	name := secret.Annotations[multicluster.ClusterAnnotation]
	if _, err := fmt.Fprintf(e.out, "# Credentials: whoever has this text can %s cluster %s.\n%s---\n", reads, name, text); err != nil {
		return fmt.Errorf("print secret of cluster %s: %w", name, err)
	}
	if isTerminal(e.out) {
		e.complain("\nApply this in the %s: pipe it to kubectl apply -f - --context CONTEXT\n", place)
	}
	return nil
}

// makeConfigSecret turns a remote secret into the one that an external control
// plane mounts. It must not look like a remote secret, or the cluster would be
// read twice.
func makeConfigSecret(s *corev1.Secret) {
	kubeconfig := s.StringData[s.Annotations[multicluster.ClusterAnnotation]]
	s.Name, s.Labels = configSecretName, nil
	s.StringData = map[string]string{configSecretKey: kubeconfig}
}

// options connects to the remote cluster.
func (f *remoteSecretFlags) options() (multicluster.RemoteSecretOptions, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	none := multicluster.RemoteSecretOptions{}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: f.context}).ClientConfig()
	if err != nil {
		return none, fmt.Errorf("read kubeconfig of the remote cluster: %w", install.Unnamed(err))
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return none, fmt.Errorf("make client of the remote cluster: %w", err)
	}
	allow, err := multicluster.ParseOptions(f.insecureKubeconfigOverrides)
	if err != nil {
		return none, err
	}
	var ca []byte
	if f.ca != "" {
		if ca, err = os.ReadFile(f.ca); err != nil {
			return none, fmt.Errorf("read --certificate-authority: %w", err)
		}
	}
	if f.kind == kindConfig {
		f.createAccount = false // its rights are the chart's
		if f.account == multicluster.ReaderAccount {
			f.account = configAccount
		}
	}
	return multicluster.RemoteSecretOptions{Client: client, RESTConfig: cfg, Name: f.name, ServiceAccount: f.account,
		Namespace: cmp.Or(f.namespace, f.istioNamespace), Server: f.server, CAData: ca, TokenLifetime: f.tokenDuration,
		CreateReader: f.createAccount, Allow: allow}, nil
}
