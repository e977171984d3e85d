package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/kube"
)

// Waits between attempts of the primary's source.
const (
	primaryBackoff    = time.Second
	primaryBackoffMax = 30 * time.Second
)

// kubeWorld is a world of API servers: the primary, and the remotes that
// kubeconfigs in it name.
type kubeWorld struct {
	c        *Control
	log      *zap.Logger
	rest     *rest.Config
	client   kubernetes.Interface
	events   record.EventBroadcaster
	recorder record.EventRecorder
	settings *config.Watcher
	manager  *multicluster.Manager
	// renewer is nil if kubeconfigs come from files.
	renewer *multicluster.Renewer
	synced  chan struct{}
	// written is closed when nothing writes to clusters any more; nil if nothing does.
	written chan struct{}
	source  atomic.Pointer[kube.Source]
}

func newKube(c *Control) (*kubeWorld, error) {
	cfg, err := primaryConfig(c.settings.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find credentials of the primary cluster: %w; give --kubeconfig, run in a pod, or use --files to try without Kubernetes", err)
	}
	k := &kubeWorld{c: c, log: c.log.Named("kube"), rest: cfg, synced: make(chan struct{})}
	if c.secured() {
		k.written = make(chan struct{})
	}
	k.tune(cfg)
	if k.client, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, fmt.Errorf("make client of the primary cluster: %w", err)
	}
	k.events = record.NewBroadcaster()
	k.recorder = k.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "isthmus"})
	meshFile, networksFile := c.settings.meshFiles()
	k.settings, err = config.NewWatcher(config.WatchConfig{Set: c.setSettings, Client: k.settingsClient(), Namespace: c.settings.Namespace,
		Revision: c.settings.Revision, Files: config.Files{Mesh: meshFile, Networks: networksFile}, Cluster: c.settings.primary(),
		Problems: c.problems, Log: c.log})
	if err != nil {
		return nil, err
	}
	if k.manager, err = k.newManager(); err != nil {
		return nil, err
	}
	if k.renewer, err = k.newRenewer(); err != nil {
		return nil, err
	}
	return k, nil
}

// primaryConfig finds the credentials: the file if it is named and exists, the
// pod's own, else the user's kubeconfig.
func primaryConfig(file string) (*rest.Config, error) {
	if file != "" {
		if _, err := os.Stat(file); err == nil {
			return fileConfig(file)
		}
	}
	cfg, err := rest.InClusterConfig()
	if !errors.Is(err, rest.ErrNotInCluster) {
		return cfg, err
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
}

// tune sets what holds for every API server.
func (k *kubeWorld) tune(cfg *rest.Config) {
	kube.RESTDefaults(cfg)
	cfg.QPS, cfg.Burst = k.c.settings.APIQPS, k.c.settings.APIBurst
}

func (k *kubeWorld) newManager() (*multicluster.Manager, error) {
	s := k.c.settings
	options, err := multicluster.ParseOptions(s.InsecureKubeconfig)
	if err != nil {
		return nil, err
	}
	var aliases []mesh.ClusterID
	for alias, id := range s.Aliases {
		if id == s.Primary {
			aliases = append(aliases, mesh.ClusterID(alias))
		}
	}
	slices.Sort(aliases)
	secrets, err := k.secretsClient()
	if err != nil {
		return nil, err
	}
	timeout := s.RemoteTimeout
	if timeout == 0 {
		timeout = -1 // istiod's 0: wait for ever
	}
	return multicluster.New(multicluster.Config{
		Primary: s.primary(), Aliases: aliases, PrimaryStatus: k.primaryStatus,
		Client: k.client, Secrets: secrets, Namespace: s.remoteNamespace(), Directory: s.KubeconfigDir, Options: options, Timeout: timeout,
		NewSource: func(id mesh.ClusterID, cfg *rest.Config) (registry.Source, error) {
			k.tune(cfg)
			src, err := k.newSource(id, cfg)
			if err != nil {
				return nil, err
			}
			return reporting{src}, nil
		},
		NewSink: k.c.store.NewSink, Left: k.c.problems.ClearCluster,
		SetWeights: k.c.store.SetSecretWeights, WeightOf: k.c.weightOf, Problems: k.c.problems,
		Events: k.recorder,
		Log:    k.c.log.Named("multicluster"), Metrics: k.c.metrics,
	})
}

func (k *kubeWorld) newSource(id mesh.ClusterID, cfg *rest.Config) (*kube.Source, error) {
	s := k.c.settings
	c := kube.Config{Cluster: id, REST: cfg, Namespace: s.Namespace, Domain: s.Domain, Revision: s.Revision,
		Problems: k.c.problems, Log: k.c.log.Named("kube"), Metrics: k.c.metrics}
	if id == s.primary() {
		c.Primary = true
		c.TrustDomain = func() string { return k.c.store.Catalog().TrustDomain() }
	}
	return kube.New(c)
}

// reporting tells multicluster how a source is, in its words.
type reporting struct{ *kube.Source }

func (r reporting) Status() multicluster.SourceStatus { return sourceStatus(r.Source) }

func sourceStatus(src *kube.Source) multicluster.SourceStatus {
	s := src.Status()
	out := multicluster.SourceStatus{Reachable: s.Reachable, LastEvent: s.LastEvent, LastContact: s.LastContact, Error: s.Error}
	for _, x := range s.Kinds {
		out.Kinds = append(out.Kinds, multicluster.KindStatus{Kind: x.Kind, Synced: x.Synced, LastEvent: x.LastEvent, Error: x.Error})
	}
	return out
}

func (k *kubeWorld) parts() []part {
	parts := []part{
		{"mesh settings", k.settings.Run},
		{"primary cluster", k.runPrimary},
		{"remote clusters", k.runRemotes},
		{"events", k.runEvents},
	}
	if k.renewer != nil {
		parts = append(parts, part{"tokens of remote clusters", k.renewer.Run})
	}
	return parts
}

// runRemotes reads the remotes. At the end it waits for what writes to them: that
// gives back what it holds there, by connections that end with this.
func (k *kubeWorld) runRemotes(ctx context.Context) error {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if k.written != nil {
			<-k.written
		}
		cancel()
	})()
	return k.manager.Run(own)
}

// runPrimary reads the primary for as long as the process runs. A source that
// ends is started anew; what it reported stays.
func (k *kubeWorld) runPrimary(ctx context.Context) error {
	select {
	case <-k.settings.Synced(): // trust domain and root namespace are part of what is read
	case <-ctx.Done():
		return nil
	}
	wait := primaryBackoff
	for {
		src, err := k.newSource(k.c.settings.primary(), rest.CopyConfig(k.rest))
		if err != nil {
			return err
		}
		k.source.Store(src)
		sink := &watchedSink{Sink: k.c.store.NewSink(k.c.settings.primary()), synced: make(chan struct{})}
		go k.noteSynced(ctx, sink)
		err = src.Run(ctx, sink)
		sink.Close(registry.Keep)
		if ctx.Err() != nil {
			return nil
		}
		k.log.Error("reading the primary cluster ended, starting again", zap.Error(err), zap.Duration("in", wait))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, primaryBackoffMax)
	}
}

func (k *kubeWorld) noteSynced(ctx context.Context, s *watchedSink) {
	select {
	case <-s.synced:
	case <-ctx.Done():
		return
	}
	select {
	case <-k.synced:
	default:
		close(k.synced)
	}
}

// awaitSettings implements world.
func (k *kubeWorld) awaitSettings(ctx context.Context) bool {
	select {
	case <-k.settings.Synced():
		return true
	case <-ctx.Done():
		return false
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (k *kubeWorld) notReady() string {
	switch {
	case !closed(k.settings.Synced()):
		return "mesh settings not read yet"
	case !closed(k.synced):
		return "primary cluster not read yet"
	case !k.manager.HasSynced():
		return "remote clusters not read yet"
	}
	return ""
}

func (k *kubeWorld) primaryStatus() multicluster.PrimaryStatus {
	p := multicluster.PrimaryStatus{Synced: closed(k.synced), Server: k.rest.Host}
	if src := k.source.Load(); src != nil {
		s := sourceStatus(src)
		p.Source = &s
	}
	return p
}

func (k *kubeWorld) clusters() []multicluster.Status { return k.manager.Clusters() }

func (k *kubeWorld) refusals() []multicluster.Refusal { return k.manager.Refusals() }

func (k *kubeWorld) debug() []namedHandler {
	return []namedHandler{
		{name: "clusterz", help: "clusters and their sync state, as istioctl reads it", handler: http.HandlerFunc(k.manager.ServeClusterz)},
		{name: "clusters", help: "clusters with health, age and refused kubeconfigs", handler: http.HandlerFunc(k.manager.ServeClusters)},
	}
}
