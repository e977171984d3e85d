package config

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// watchConfigMap follows the ConfigMap. Its absence means the defaults.
func (w *Watcher) watchConfigMap(ctx context.Context) error {
	name := MeshConfigMap(w.cfg.Revision)
	ref := mesh.ObjectRef{Cluster: w.cfg.Cluster, Kind: "ConfigMap", Namespace: w.cfg.Namespace, Name: name}
	return FollowConfigMap(ctx, w.cfg.Client, w.cfg.Namespace, name, func(cm *corev1.ConfigMap) {
		if cm == nil {
			w.take(ref, nil)
			return
		}
		w.take(ref, cm.Data)
	}, w.watchErrors(ref))
}

// watchErrors logs a failure to read when it is new, not on every retry.
func (w *Watcher) watchErrors(ref mesh.ObjectRef) func(error) {
	const quiet = 10 * time.Minute
	var mu sync.Mutex
	var text string
	var at time.Time
	return func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if err.Error() == text && time.Since(at) < quiet {
			return
		}
		text, at = err.Error(), time.Now()
		w.log.Warn("cannot read settings now; what was read stays in force", zap.Stringer("object", ref), zap.Error(err))
	}
}
