package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// startTimeout bounds a start; with many on two busy cores it is slow.
const startTimeout = 2 * time.Minute

// Config says what cluster to start. The zero value is a good one.
type Config struct {
	// Name is the cluster's name in kubeconfigs and in errors. Default
	// "cluster".
	Name string
	// Dir holds all data. An empty one makes a new cluster, the one of an
	// earlier cluster brings that back. Default: a temporary directory that
	// Stop removes.
	Dir string
	// Log receives the server's log as well as the file isthmus-kube.log in
	// Dir, which always has it.
	Log io.Writer
	// ServiceCIDR is the range of ClusterIPs. Default 10.0.0.0/16.
	ServiceCIDR string
}

// Cluster is a Kubernetes cluster that runs in a process of its own. Its
// methods may be called from many goroutines.
type Cluster struct {
	// Set by Start, constant after.
	cfg        Config
	binary     string
	temporary  bool   // Dir is removed by Stop
	url        string // also constant over restarts
	kubeconfig []byte
	rest       *rest.Config
	http       *http.Client // of the clients below
	client     kubernetes.Interface
	dynamic    dynamic.Interface
	mapper     *restmapper.DeferredDiscoveryRESTMapper

	mu   sync.Mutex
	proc *process
}

// Start starts a cluster and returns when it serves. ctx bounds the start
// only (building the binary included); the cluster runs until Stop or Kill,
// and no longer than this process where the system can see to that.
func Start(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	if cfg.Name == "" {
		cfg.Name = "cluster"
	}
	if cfg.ServiceCIDR == "" {
		cfg.ServiceCIDR = "10.0.0.0/16"
	}
	c := &Cluster{cfg: cfg}
	if c.binary, err = Binary(ctx); err != nil {
		return nil, err
	}
	if err := c.makeDir(); err != nil {
		return nil, fmt.Errorf("start cluster %s: %w", cfg.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	if err := c.makeClients(); err != nil {
		return nil, fmt.Errorf("connect to cluster %s: %w", cfg.Name, err)
	}
	return c, nil
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.cfg.Name }

// URL returns the address of the API server; it outlives restarts.
func (c *Cluster) URL() string { return c.url }

// Kubeconfig returns the administrator's kubeconfig, a client certificate
// with all rights. It outlives restarts. The caller owns the copy.
func (c *Cluster) Kubeconfig() []byte { return append([]byte(nil), c.kubeconfig...) }

// REST returns the administrator's client configuration: protobuf where the
// type has it, no client-side rate limit. The caller owns the copy. For types
// without protobuf (custom resources) set ContentType to JSON, as
// dynamic.NewForConfig does by itself.
func (c *Cluster) REST() *rest.Config { return rest.CopyConfig(c.rest) }

// Client returns the administrator's client, made from REST.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Dynamic returns the administrator's client for objects of any kind.
func (c *Cluster) Dynamic() dynamic.Interface { return c.dynamic }

// Kill ends the process as a crash does (SIGKILL) and waits until it is gone.
// Connections break; the data stays for Restart.
func (c *Cluster) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		c.proc.kill()
		c.proc = nil
	}
}

// Restart starts the process again with the same data, certificates and port,
// and returns when it serves. If it still runs, it is killed first.
func (c *Cluster) Restart(ctx context.Context) error {
	c.Kill()
	return c.start(ctx)
}

// Pause freezes the process (SIGSTOP): connections stay open and nothing
// comes back, as with a partition. It returns when the process has stopped.
// Without a running process it does nothing.
func (c *Cluster) Pause() {
	c.signal(syscall.SIGSTOP)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		awaitStopped(c.proc.cmd.Process.Pid)
	}
}

// Resume lets a paused process go on.
func (c *Cluster) Resume() { c.signal(syscall.SIGCONT) }

// Running says whether the process lives, which a paused one does.
func (c *Cluster) Running() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == nil {
		return false
	}
	select {
	case <-c.proc.ended:
		return false
	default:
		return true
	}
}

// Stop ends the process in order and removes the data if Start chose where
// to put it. It may be called more than once.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		c.proc.stop()
		c.proc = nil
	}
	if c.http != nil {
		utilnet.CloseIdleConnectionsFor(c.http.Transport)
	}
	if !c.temporary {
		return nil
	}
	if err := os.RemoveAll(c.cfg.Dir); err != nil {
		return fmt.Errorf("remove data of cluster %s: %w", c.cfg.Name, err)
	}
	return nil
}

// start runs a process, which must not run yet.
func (c *Cluster) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		return fmt.Errorf("start cluster %s: it runs already", c.cfg.Name)
	}
	proc, err := startProcess(ctx, c.binary, c.cfg)
	if err != nil {
		return fmt.Errorf("start cluster %s: %w", c.cfg.Name, err)
	}
	c.proc = proc
	return nil
}

func (c *Cluster) signal(sig os.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		c.proc.signal(sig)
	}
}

// makeDir sees to the data directory, by its absolute path.
func (c *Cluster) makeDir() (err error) {
	if c.cfg.Dir == "" {
		c.temporary = true
		c.cfg.Dir, err = os.MkdirTemp("", "isthmus-kube-"+c.cfg.Name+"-")
		if err != nil {
			return fmt.Errorf("create data directory: %w", err)
		}
		return nil
	}
	if c.cfg.Dir, err = filepath.Abs(c.cfg.Dir); err != nil {
		return fmt.Errorf("resolve data directory: %w", err)
	}
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	return nil
}

// makeClients reads the kubeconfig that the process wrote.
func (c *Cluster) makeClients() (err error) {
	raw, err := os.ReadFile(filepath.Join(c.cfg.Dir, "kubeconfig"))
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	if c.kubeconfig, err = rename(raw, c.cfg.Name); err != nil {
		return fmt.Errorf("rename kubeconfig: %w", err)
	}
	if c.rest, err = RESTConfig(c.kubeconfig); err != nil {
		return err
	}
	c.url = c.rest.Host
	if c.http, err = rest.HTTPClientFor(c.rest); err != nil {
		return fmt.Errorf("build transport: %w", err)
	}
	if c.client, err = kubernetes.NewForConfigAndClient(c.rest, c.http); err != nil {
		return fmt.Errorf("build client: %w", err)
	}
	if c.dynamic, err = dynamic.NewForConfigAndClient(c.rest, c.http); err != nil {
		return fmt.Errorf("build dynamic client: %w", err)
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.client.Discovery()))
	return nil
}

// RESTConfig makes a client configuration from a kubeconfig, with protobuf
// and without a client-side rate limit.
func RESTConfig(kubeconfig []byte) (*rest.Config, error) {
	cfg, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("parse kubeconfig: %w", err)
	}
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.QPS = -1
	cfg.UserAgent = "isthmus-testenv"
	return cfg, nil
}

// rename gives cluster and context of a kubeconfig a name.
func rename(raw []byte, name string) ([]byte, error) {
	cfg, err := clientcmd.Load(raw)
	if err != nil {
		return nil, fmt.Errorf("parse kubeconfig: %w", err)
	}
	current := cfg.Contexts[cfg.CurrentContext]
	if current == nil {
		return nil, fmt.Errorf("parse kubeconfig: no context %q", cfg.CurrentContext)
	}
	cluster, user := cfg.Clusters[current.Cluster], cfg.AuthInfos[current.AuthInfo]
	return writeKubeconfig(name, current.AuthInfo, cluster, user)
}
