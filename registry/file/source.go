// Package file reads a folder of YAML as a cluster: Kubernetes objects as
// kubectl prints them, so that a mesh can be tried, and its configuration
// tested, without Kubernetes.
//
// It owns the reading of files: documents and lists, edits, files that cannot
// be read. What the objects mean is the business of the Translator in
// registry/kube, which reads API servers the same way, and of registry/config.
package file

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/kube"
)

// Waits of a [Source].
const (
	// settle is how long the folder must be quiet before it is read: editors and
	// ConfigMap mounts touch several names for one edit.
	settle = 10 * time.Millisecond
	// settleMax bounds the wait for quiet.
	settleMax = 100 * time.Millisecond
	// secondLook is when a file that became empty is read again.
	secondLook = 250 * time.Millisecond
	// rescan is when the folder is read even if nothing was noticed: not every
	// file system tells.
	rescan = 10 * time.Second
)

// Config configures a [Source].
type Config struct {
	// Dir is the folder. Files that end in .yaml, .yml or .json count, in it and
	// in its sub-folders; hidden ones do not.
	Dir     string
	Cluster mesh.ClusterID
	// Domain, Namespace, Revision and TrustDomain are as in [kube.TranslatorConfig].
	Domain, Namespace, Revision, TrustDomain string
	// OnSettings is set for the primary and takes the mesh-wide settings of its
	// mesh ConfigMap, before anything that was read with them.
	OnSettings func(mesh.Settings)
	// Problems lists files and objects that are not served as written; nil for none.
	Problems *registry.Problems
	// Log is for what happens; nil for none.
	Log *zap.Logger
}

// Source reads one cluster from a folder.
type Source struct {
	cfg        Config
	log        *zap.Logger
	folder     *folder
	translator *kube.Translator
	// set is what the translator has, by object; raw tells whether it changed.
	set map[id]string
	// found is where merge found each object.
	found map[id]place
	// reported are the problems that this source told.
	reported map[mesh.ObjectRef]struct{}
	// settings is the ConfigMap that was read for OnSettings last, badSettings says
	// that it could not be used.
	settings    string
	badSettings bool
}

// New returns a source; it reads nothing before [Source.Run].
func New(c Config) (*Source, error) {
	if c.Dir == "" || c.Cluster == "" {
		return nil, errors.New("make source of a folder: no folder or no name of the cluster; set Dir and Cluster")
	}
	if c.Namespace == "" {
		c.Namespace = kube.DefaultNamespace
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Problems == nil {
		c.Problems = registry.NewProblems(nil)
	}
	log := c.Log.With(zap.String("cluster", string(c.Cluster)))
	return &Source{
		cfg: c, log: log, folder: &folder{dir: c.Dir, cluster: c.Cluster, files: map[string]*state{}},
		translator: kube.NewTranslator(kube.TranslatorConfig{Cluster: c.Cluster, Domain: c.Domain, Namespace: c.Namespace,
			Revision: c.Revision, TrustDomain: c.TrustDomain, Primary: c.OnSettings != nil, DeriveEndpoints: true, Problems: c.Problems, Log: log}),
		set: map[id]string{}, found: map[id]place{}, reported: map[mesh.ObjectRef]struct{}{},
	}, nil
}

// Run reads the folder, reports it, and goes on reporting what is edited until
// the context ends. A folder that cannot be read at the start is an error; one
// that cannot be read later is a problem, and what was read of it stays.
func (s *Source) Run(ctx context.Context, to registry.Sink) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch folder %s of cluster %s: %w", s.cfg.Dir, s.cfg.Cluster, err)
	}
	defer w.Close() //nolint:errcheck // nothing is written
	// Watching first: an edit between the first reading and the first watch would be lost.
	if err := w.Add(s.cfg.Dir); err != nil {
		return fmt.Errorf("watch folder %s of cluster %s: %w", s.cfg.Dir, s.cfg.Cluster, err)
	}
	_, again, err := s.load(w)
	if err != nil {
		return fmt.Errorf("read folder %s of cluster %s: %w", s.cfg.Dir, s.cfg.Cluster, err)
	}
	u := s.translator.Snapshot()
	to.Replace(u)
	s.log.Info("folder read", zap.Int("files", len(s.folder.files)), zap.Int("services", len(u.Services)), zap.Int("ignored", s.ignored()))
	for s.await(ctx, w, again) {
		changed, more, err := s.load(w)
		if again = more; err != nil {
			again = true
			s.report(map[mesh.ObjectRef]problem{s.ref("."): {"", "the folder cannot be read, its last good content stays: " + err.Error()}}, true)
			continue
		}
		if !changed {
			continue
		}
		if u, ok := s.translator.Flush(); ok {
			to.Apply(u)
		}
	}
	return nil
}

// await waits until the folder should be read again, and reports false if the
// context ended instead.
func (s *Source) await(ctx context.Context, w *fsnotify.Watcher, again bool) bool {
	wait := rescan
	if again {
		wait = secondLook
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var first time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case err := <-w.Errors:
			s.log.Warn("watching the folder went wrong, reading all of it", zap.Error(err))
			return true
		case e := <-w.Events:
			if e.Op == fsnotify.Chmod {
				continue
			}
			if first.IsZero() {
				first = time.Now()
			}
			timer.Reset(min(settle, settleMax-time.Since(first)))
		}
	}
}

// load reads the folder into the translator and reports whether anything is new
// and whether to look again soon.
func (s *Source) load(w *fsnotify.Watcher) (changed, again bool, err error) {
	// A folder that appears while it is walked may be read before it is watched:
	// read until no new one turns up.
	for range maxFolders { // two names of one folder could go on for ever
		watch, different, more, err := s.folder.read()
		if err != nil {
			return false, false, err
		}
		changed, again = changed || different, more
		if !s.watch(w, watch) {
			break
		}
	}
	if changed || len(s.reported) > 0 {
		s.merge()
	}
	return changed, again, nil
}

// watch follows the folders and reports whether any is new. Folders that went
// are dropped by the watcher itself.
func (s *Source) watch(w *fsnotify.Watcher, folders []string) (grew bool) {
	have := map[string]bool{}
	for _, p := range w.WatchList() {
		have[p] = true
	}
	for _, p := range folders {
		if have[filepath.Clean(p)] {
			continue
		}
		if err := w.Add(p); err != nil {
			s.log.Warn("cannot watch folder, reading it now and then", zap.String("folder", p), zap.Error(err))
			continue
		}
		grew = true
	}
	return grew
}

// place is where an object stands.
type place struct {
	file string
	line int
}

func (p place) String() string { return p.file + " line " + strconv.Itoa(p.line) }

// problem is what is wrong with an object or a file.
type problem struct{ field, message string }

// merge makes the translator equal to the files. Of two files that define one
// object the first by name wins.
func (s *Source) merge() {
	found := s.found
	clear(found) // kept between readings: a large folder would make as much garbage for every edit
	problems := map[mesh.ObjectRef]problem{}
	for _, name := range s.folder.names() {
		st := s.folder.files[name]
		if st.problem != "" {
			problems[s.ref(name)] = problem{lineField(st.line), st.problem + "; the last good content of the file stays"}
		}
		var twice []string
		for i := range st.good.objects {
			o := &st.good.objects[i]
			at := place{name, o.line}
			if first, there := found[o.id]; there {
				twice = append(twice, fmt.Sprintf("%s %s/%s (line %d) is also in %s, which counts", o.id.kind, o.id.namespace, o.id.name, o.line, first))
				continue
			}
			found[o.id] = at
			if o.err != nil {
				problems[s.objectRef(o.id)] = objectProblem(at, o.err)
				continue // what was known of it stays
			}
			s.put(o)
		}
		if len(twice) > 0 && st.problem == "" {
			problems[s.ref(name)] = problem{"", strings.Join(twice, "; ") + "; remove one"}
		}
	}
	for k := range s.set {
		if _, there := found[k]; !there {
			s.drop(k)
		}
	}
	s.report(problems, false)
}

func lineField(line int) string {
	if line == 0 {
		return ""
	}
	return "line " + strconv.Itoa(line)
}

func objectProblem(at place, err error) problem {
	var fe *config.FieldError
	if errors.As(err, &fe) {
		return problem{fe.Field, at.String() + ": " + fe.Message}
	}
	return problem{join(fieldPath(err)), at.String() + ": " + jsonMessage(err)}
}

// put gives an object to the translator if it is new or different, or if a
// problem of it is over.
func (s *Source) put(o *object) {
	if s.set[o.id] == o.raw && len(s.reported) == 0 {
		return
	}
	ref := s.objectRef(o.id)
	_, bad := s.reported[ref]
	if s.set[o.id] == o.raw && !bad {
		return
	}
	if bad {
		s.cfg.Problems.Clear(ref) // before the translator, which may have one of its own
		delete(s.reported, ref)
	}
	s.set[o.id] = o.raw
	s.translator.Set(o.value)
	if cm, ok := o.value.(*corev1.ConfigMap); ok {
		s.tellSettings(cm, o.raw)
	}
}

func (s *Source) drop(k id) {
	delete(s.set, k)
	if c, ok := configKind(k); ok {
		s.translator.DeleteObject(mesh.ObjectKey{Kind: c, Namespace: k.namespace, Name: k.name})
		return
	}
	s.translator.Delete(k.kind, k.namespace, k.name)
}

func configKind(k id) (mesh.ObjectKind, bool) {
	for _, c := range append(config.Kinds(), config.GatewayKinds()...) {
		if string(c.Kind) == string(k.kind) && k.kind != kube.KindGateway {
			return c.Kind, true
		}
	}
	return "", false
}

// tellSettings passes on the mesh-wide settings. Settings that cannot be used
// leave those in force.
func (s *Source) tellSettings(cm *corev1.ConfigMap, raw string) {
	if s.cfg.OnSettings == nil || cm.Namespace != s.cfg.Namespace || cm.Name != config.MeshConfigMap(s.cfg.Revision) || s.settings == raw {
		return
	}
	s.settings = raw
	settings, err := config.FromConfigMap(cm.Data)
	ref := s.objectRef(id{kube.KindConfigMap, cm.Namespace, cm.Name})
	if err != nil {
		s.badSettings = true
		p := problem{"data", err.Error() + "; the settings in force stay"}
		var fe *config.FieldError
		if errors.As(err, &fe) {
			p = problem{fe.Field, fe.Message + "; the settings in force stay"}
		}
		if s.cfg.Problems.Set(ref, p.field, p.message) {
			s.log.Warn("settings are not used", zap.Stringer("object", ref), zap.String("field", p.field), zap.String("reason", p.message))
		}
		return
	}
	if s.badSettings {
		s.badSettings = false
		s.cfg.Problems.Clear(ref)
	}
	s.cfg.OnSettings(settings)
}

func (s *Source) ref(name string) mesh.ObjectRef {
	return mesh.ObjectRef{Cluster: s.cfg.Cluster, Kind: "File", Name: name}
}

func (s *Source) objectRef(k id) mesh.ObjectRef {
	return mesh.ObjectRef{Cluster: s.cfg.Cluster, Kind: string(k.kind), Namespace: k.namespace, Name: k.name}
}

// report tells the problems that there are now, and that others are over unless
// keep is set.
func (s *Source) report(now map[mesh.ObjectRef]problem, keep bool) {
	for ref := range s.reported {
		if _, still := now[ref]; !still && !keep {
			s.cfg.Problems.Clear(ref)
			delete(s.reported, ref)
		}
	}
	for ref, p := range now {
		s.reported[ref] = struct{}{}
		if s.cfg.Problems.Set(ref, p.field, p.message) {
			s.log.Warn("not served as written", zap.Stringer("object", ref), zap.String("field", p.field), zap.String("reason", p.message))
		}
	}
}

func (s *Source) ignored() int {
	n := 0
	for _, st := range s.folder.files {
		n += st.good.ignored
	}
	return n
}
