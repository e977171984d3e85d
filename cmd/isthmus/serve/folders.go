package serve

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/file"
)

// lookForFolders is how often the world's folder is looked at for clusters that
// came or went. Files within a cluster's folder are noticed at once.
const lookForFolders = 500 * time.Millisecond

// folders is a world of YAML: every sub-folder is a cluster. A folder that
// appears joins the mesh, one that disappears leaves it.
type folders struct {
	c   *Control
	log *zap.Logger

	mu      sync.Mutex
	listed  bool
	running map[mesh.ClusterID]*folder
}

// folder is one cluster that is being read.
type folder struct {
	stop   context.CancelFunc
	done   chan struct{}
	sink   *watchedSink
	since  time.Time
	ended  atomic.Pointer[string] // why reading ended, if it did by itself
	source *file.Source
}

// watchedSink notes the first complete reading.
type watchedSink struct {
	registry.Sink
	synced chan struct{}
	once   sync.Once
}

func (s *watchedSink) Replace(u registry.Update) {
	s.Sink.Replace(u)
	s.once.Do(func() { close(s.synced) })
}

func newFolders(c *Control) *folders {
	return &folders{c: c, log: c.log.Named("files"), running: map[mesh.ClusterID]*folder{}}
}

func (f *folders) parts() []part { return []part{{"folders of clusters", f.run}} }

// run keeps one source per sub-folder.
func (f *folders) run(ctx context.Context) error {
	defer f.stopAll()
	tick := time.NewTicker(lookForFolders)
	defer tick.Stop()
	for {
		ids, err := file.Clusters(f.c.settings.Files)
		if err != nil {
			// A folder that cannot be read for a moment says nothing about its clusters.
			f.log.Warn("cannot list clusters, keeping those there are", zap.Error(err))
		} else if err := f.reconcile(ctx, ids); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (f *folders) reconcile(ctx context.Context, ids []mesh.ClusterID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if f.running[id] != nil {
			continue
		}
		if err := f.start(ctx, id); err != nil {
			return err
		}
	}
	for id, x := range f.running {
		if !slices.Contains(ids, id) {
			f.log.Info("cluster left", zap.String("cluster", string(id)))
			x.stop()
			<-x.done
			x.sink.Close(registry.Drop)
			f.c.problems.ClearCluster(id)
			delete(f.running, id)
		}
	}
	f.listed = true
	return nil
}

func (f *folders) start(ctx context.Context, id mesh.ClusterID) error {
	cfg := file.Config{Dir: f.c.settings.Files + "/" + string(id), Cluster: id, Domain: f.c.settings.Domain,
		Namespace: f.c.settings.Namespace, Problems: f.c.problems, Log: f.log}
	if id == f.c.settings.primary() {
		cfg.OnSettings = f.c.setSettings
	}
	src, err := file.New(cfg)
	if err != nil {
		return fmt.Errorf("read cluster %s: %w", id, err)
	}
	ctx, stop := context.WithCancel(ctx)
	x := &folder{stop: stop, done: make(chan struct{}), since: time.Now(), source: src,
		sink: &watchedSink{Sink: f.c.store.NewSink(id), synced: make(chan struct{})}}
	f.running[id] = x
	f.log.Info("cluster joins", zap.String("cluster", string(id)), zap.String("folder", cfg.Dir))
	go func() {
		defer close(x.done)
		if err := src.Run(ctx, x.sink); err != nil && ctx.Err() == nil {
			f.log.Error("reading a cluster ended", zap.String("cluster", string(id)), zap.Error(err))
			why := err.Error()
			x.ended.Store(&why)
		}
	}()
	return nil
}

func (f *folders) stopAll() {
	f.mu.Lock()
	running := slices.Collect(maps.Values(f.running))
	f.mu.Unlock()
	for _, x := range running {
		x.stop()
		<-x.done
		x.sink.Close(registry.Keep)
	}
}

func (x *folder) isSynced() bool {
	select {
	case <-x.sink.synced:
		return true
	default:
		return false
	}
}

// awaitSettings implements world: the settings come with the primary's folder.
func (f *folders) awaitSettings(ctx context.Context) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		f.mu.Lock()
		x := f.running[f.c.settings.primary()]
		f.mu.Unlock()
		if x != nil && x.isSynced() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

func (f *folders) notReady() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	primary := f.c.settings.primary()
	switch {
	case !f.listed:
		return "folders not listed yet"
	case f.running[primary] == nil:
		return fmt.Sprintf("no folder of the primary cluster %s in %s", primary, f.c.settings.Files)
	}
	for _, id := range slices.Sorted(maps.Keys(f.running)) {
		if !f.running[id].isSynced() {
			return fmt.Sprintf("cluster %s not read yet", id)
		}
	}
	return ""
}

func (f *folders) clusters() []multicluster.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := slices.SortedFunc(maps.Keys(f.running), func(a, b mesh.ClusterID) int {
		return mesh.CompareClusters(f.c.settings.primary(), a, b)
	})
	out := make([]multicluster.Status, 0, len(ids))
	for _, id := range ids {
		x := f.running[id]
		s := multicluster.Status{ID: id, Primary: id == f.c.settings.primary(), SyncStatus: multicluster.StatusSyncing,
			Health: multicluster.HealthStarting, Since: x.since, Server: "file:" + f.c.settings.Files + "/" + string(id),
			Weight: f.c.weightOf(id).Given()}
		if !s.Primary {
			s.SecretName = s.Server
		}
		if x.isSynced() {
			s.SyncStatus, s.Health = multicluster.StatusSynced, multicluster.HealthOK
		}
		if why := x.ended.Load(); why != nil {
			s.Health, s.Reason = multicluster.HealthDegraded, *why
		}
		out = append(out, s)
	}
	return out
}

func (f *folders) refusals() []multicluster.Refusal { return nil }

func (f *folders) debug() []namedHandler { return clusterViews(f.clusters) }
