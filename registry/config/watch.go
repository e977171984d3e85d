package config

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Files names files that hold the mesh-wide settings.
type Files struct{ Mesh, Networks string }

// WatchConfig configures a [Watcher].
type WatchConfig struct {
	// Set is called with the first settings and with every change; never twice at
	// the same time. [registry.Store.SetSettings] is meant.
	Set func(mesh.Settings)
	// Client reads the ConfigMap of the primary. It is not used if Files names any.
	Client kubernetes.Interface
	// Namespace and Revision say which ConfigMap: "istio" in the namespace, or
	// "istio-REVISION" for a revision other than "default".
	Namespace, Revision string
	// Files are read instead of the ConfigMap if any is named. A file that does
	// not exist means the defaults, as does one that is not named.
	Files Files
	// Cluster is named in problems: the primary.
	Cluster mesh.ClusterID
	// Problems lists settings that cannot be used; nil for none.
	Problems *registry.Problems
	// Log tells what was read and refused; nil for none.
	Log *zap.Logger
}

// Watcher keeps the mesh-wide settings up to date. Settings that cannot be used
// are refused as a whole: what was in force stays, and the refusal is on record
// by name. At start nothing is in force, so a watcher that finds unusable
// settings waits for better ones instead of serving with a wrong trust domain.
type Watcher struct {
	cfg    WatchConfig
	log    *zap.Logger
	synced chan struct{}

	mu   sync.Mutex
	last mesh.Settings // the settings in force; guarded by mu
}

// NewWatcher returns a watcher; it reads nothing before [Watcher.Run].
func NewWatcher(c WatchConfig) (*Watcher, error) {
	if c.Set == nil {
		return nil, errors.New("make settings watcher: nobody to tell; set Set")
	}
	if c.Files == (Files{}) && (c.Client == nil || c.Namespace == "") {
		return nil, errors.New("make settings watcher: nothing to read; name files, or a client and a namespace")
	}
	if c.Problems == nil {
		c.Problems = registry.NewProblems(nil)
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return &Watcher{cfg: c, log: c.Log.Named("settings"), synced: make(chan struct{})}, nil
}

// Synced is closed when the first usable settings were set. An API server that
// cannot be reached keeps it open: what it would say is not known.
func (w *Watcher) Synced() <-chan struct{} { return w.synced }

// Run watches until the context ends. An error says that watching is not
// possible at all.
func (w *Watcher) Run(ctx context.Context) error {
	if w.cfg.Files != (Files{}) {
		return w.watchFiles(ctx)
	}
	return w.watchConfigMap(ctx)
}

// take puts new settings in force if they can be used and differ. ref is the
// object they came from.
func (w *Watcher) take(ref mesh.ObjectRef, data map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, unknown, err := fromConfigMap(data)
	if err != nil {
		w.refuse(ref, err)
		return
	}
	w.cfg.Problems.Clear(ref)
	if proto.Equal(s.Mesh, w.last.Mesh) && proto.Equal(s.Networks, w.last.Networks) &&
		s.FailoverNeedsOutliers == w.last.FailoverNeedsOutliers && s.Weights.Equal(w.last.Weights) {
		return
	}
	if s.Mesh.GetZoneAwareLbSetting().GetEnabled().GetValue() {
		w.log.Warn("zoneAwareLbSetting is not served: requests are spread as if it were not there; use localityLbSetting", zap.Stringer("object", ref))
	}
	if len(unknown) > 0 {
		w.log.Warn("settings have unknown fields, which are left out", zap.Stringer("object", ref), zap.Strings("fields", clipList(unknown)))
	}
	first := w.last.Mesh == nil
	w.last = s
	w.cfg.Set(s)
	w.log.Info("settings in force", zap.Stringer("object", ref), zap.String("trustDomain", s.Mesh.GetTrustDomain()),
		zap.Int("networks", len(s.Networks.GetNetworks())))
	if first {
		close(w.synced)
	}
}

// refuse records settings that cannot be used. The caller holds mu.
func (w *Watcher) refuse(ref mesh.ObjectRef, err error) {
	var field string
	if fe := (*FieldError)(nil); errors.As(err, &fe) {
		field = fe.Field
	}
	kept := "the last good settings stay in force"
	if w.last.Mesh == nil {
		kept = "nothing is served before they can be used"
	}
	if w.cfg.Problems.Set(ref, field, fmt.Sprintf("%v; %s", err, kept)) {
		w.log.Error("settings refused: "+kept, zap.Stringer("object", ref), zap.Error(err))
	}
}

func clipList(list []string) []string {
	const limit = 20
	return slices.Clone(list[:min(len(list), limit)])
}
