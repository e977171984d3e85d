package serve

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/mesh/inject"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// injectionDir is where Istio's chart may mount the injection configuration as
// files; read only if they exist.
const injectionDir = "./var/lib/istio/inject"

// lookForInjection is how often files with injection configuration are looked at.
const lookForInjection = 2 * time.Second

// maxInjectionFile bounds one file with injection configuration.
const maxInjectionFile = 4 << 20

// injection keeps the injection configuration: ConfigMap istio-sidecar-injector
// of the primary, or Isthmus's own templates where there is none. What cannot
// be used is on record by name, and what was in force stays.
type injection struct {
	c       *Control
	log     *zap.Logger
	ref     mesh.ObjectRef
	options inject.Options
	handler http.Handler

	current atomic.Pointer[inject.Config]
	// answered: the configuration has been asked for and something was heard.
	answered atomic.Bool

	mu     sync.Mutex
	origin string // where what is in force comes from; guarded by mu
	reason string // why something newer is not, "" if there is none; guarded by mu
}

func newInjection(c *Control) *injection {
	name := injectionConfigMap(c.settings.Revision)
	return &injection{c: c, log: c.log.Named("inject"),
		ref:     mesh.ObjectRef{Cluster: c.settings.primary(), Kind: "ConfigMap", Namespace: c.settings.Namespace, Name: name},
		options: c.settings.Injection.options(c.settings.Revision)}
}

// injectionConfigMap is the name of the ConfigMap of a revision.
func injectionConfigMap(revision string) string {
	return config.NameOf("istio-sidecar-injector", revision)
}

func (i *injection) config() *inject.Config { return i.current.Load() }

// notReady says why API servers should not be sent here yet: a replica that has
// just started would fail pods that another one can inject. One that has heard
// that there is nothing usable is as good as any other.
func (i *injection) notReady() string {
	if i == nil || i.answered.Load() {
		return ""
	}
	return "injection configuration not read yet"
}

// run follows the configuration until the context ends.
func (i *injection) run(ctx context.Context) error {
	switch {
	case existing(filepath.Join(injectionDir, inject.KeyConfig)) != "" && existing(filepath.Join(injectionDir, inject.KeyValues)) != "":
		i.ref = mesh.ObjectRef{Cluster: i.c.settings.primary(), Kind: "File", Name: injectionDir}
		return i.poll(ctx, readInjectionDir)
	case i.c.kube == nil:
		folder := filepath.Join(i.c.settings.Files, i.c.settings.Primary)
		return i.poll(ctx, func() (map[string]string, bool, error) { return findConfigMap(folder, i.ref.Namespace, i.ref.Name) })
	}
	return i.watch(ctx)
}

// take puts configuration into force, or says why not. Without a ConfigMap what
// is in force stays; at start Isthmus's own templates are.
func (i *injection) take(data map[string]string, there bool) {
	defer i.answered.Store(true)
	var next *inject.Config
	var err error
	origin := i.ref.String()
	switch {
	case there:
		next, err = inject.ParseConfigMap(data, i.options)
	case i.current.Load() != nil:
		err = fmt.Errorf("it has been deleted: what it said last is still in force; create it again, or restart the control plane to use its own templates")
	default:
		next, err = inject.Default(i.options)
		origin = "the templates of Isthmus itself"
	}
	if err != nil {
		i.refused(err)
		return
	}
	i.c.problems.Clear(i.ref)
	i.mu.Lock()
	i.origin, i.reason = origin, ""
	i.mu.Unlock()
	i.current.Store(next)
	i.log.Info("injection configuration in force", zap.String("from", origin), zap.Strings("templates", next.Templates()))
	for _, w := range next.Warnings() {
		i.log.Warn("injection configuration", zap.String("from", origin), zap.String("warning", w))
	}
}

func (i *injection) refused(err error) {
	defer i.answered.Store(true)
	i.mu.Lock()
	i.reason = err.Error()
	i.mu.Unlock()
	if i.c.problems.Set(i.ref, "", err.Error()) {
		i.log.Error("injection configuration is not used", zap.Stringer("object", i.ref), zap.Bool("an older one stays in force", i.current.Load() != nil), zap.Error(err))
	}
}

// poll looks at files again and again. What cannot be read says nothing.
func (i *injection) poll(ctx context.Context, read func() (map[string]string, bool, error)) error {
	tick := time.NewTicker(lookForInjection)
	defer tick.Stop()
	var last [2]string
	first := true
	for {
		data, there, err := read()
		now := [2]string{data[inject.KeyConfig], data[inject.KeyValues]}
		switch {
		case err != nil:
			i.refused(err)
		case first || now != last:
			i.take(data, there)
			last, first = now, false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func readInjectionDir() (map[string]string, bool, error) {
	out := map[string]string{}
	for _, key := range []string{inject.KeyConfig, inject.KeyValues} {
		text, err := readBounded(filepath.Join(injectionDir, key))
		if err != nil {
			return nil, false, err
		}
		out[key] = string(text)
	}
	return out, true, nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read injection configuration: %w", err)
	}
	if info.Size() > maxInjectionFile {
		return nil, fmt.Errorf("read injection configuration: %s has %d bytes, %d are the most", path, info.Size(), maxInjectionFile)
	}
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("read injection configuration: %w", err)
	}
	return text, nil
}

// watch follows the ConfigMap. Its absence is an answer; no answer is none.
func (i *injection) watch(ctx context.Context) error {
	return config.FollowConfigMap(ctx, i.c.kube.client, i.ref.Namespace, i.ref.Name, func(cm *corev1.ConfigMap) {
		if cm == nil {
			i.take(nil, false)
			return
		}
		i.take(cm.Data, true)
	}, func(err error) {
		i.log.Debug("cannot read injection configuration now; what was read stays in force", zap.Stringer("object", i.ref), zap.Error(err))
		if i.current.Load() == nil {
			i.refused(fmt.Errorf("it cannot be read: %w", err))
		}
	})
}

// ServeHTTP answers /debug/inject: what is in force, and why nothing newer is.
func (i *injection) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	config := i.current.Load()
	if config == nil {
		http.Error(w, "no injection configuration has been read yet", http.StatusServiceUnavailable)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	writeJSON(w, r, map[string]any{"object": i.ref.String(), "inForce": i.origin, "refused": i.reason,
		"templates": config.Sources(), "values": config.Values().Tree(), "warnings": config.Warnings()})
}
