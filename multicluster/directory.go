package multicluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// rescanInterval is how often a directory is read anew even if the system
// reports no change: on some file systems it never does.
const rescanInterval = 15 * time.Second

// maxFiles bounds the files that are read of a directory.
const maxFiles = 1000

// directory is the feed of a directory of kubeconfig files. A file does not say
// which cluster it is for but by its content, so what a file was for is
// remembered as long as the file is there: an unreadable file keeps its cluster.
type directory struct {
	path string
	log  *zap.Logger
	ids  map[string]mesh.ClusterID // by path
	last string                    // versions of all objects at the last report
}

func newDirectory(path string, log *zap.Logger) *directory {
	return &directory{path: path, log: log, ids: map[string]mesh.ClusterID{}}
}

func (d *directory) run(ctx context.Context, report func(snapshot), fail func(string)) error {
	var events chan fsnotify.Event
	var watchErrors chan error
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = watcher.Close() }() // only releases a descriptor
		events, watchErrors = watcher.Events, watcher.Errors
		err = watcher.Add(d.path)
	}
	if err != nil {
		d.log.Warn("cannot watch the directory of kubeconfigs; it is read at intervals", zap.String("directory", d.path),
			zap.Duration("interval", rescanInterval), zap.Error(err))
	}
	rescan := time.NewTicker(rescanInterval)
	defer rescan.Stop()
	for {
		if s, err := d.read(); err != nil {
			fail(err.Error())
		} else {
			fail("")
			if version := s.version(); version != d.last {
				d.last = version
				report(s)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-rescan.C:
			if watcher != nil {
				_ = watcher.Add(d.path) // it may have been made or replaced since; the rescan does without
			}
		case <-events:
		case err := <-watchErrors: // an overflow, for one: reading everything is the remedy
			d.log.Debug("watching the directory of kubeconfigs", zap.Error(err))
		}
	}
}

// version tells apart any two readings that differ. It is never empty.
func (s snapshot) version() string {
	var b strings.Builder
	b.WriteString("v")
	for _, o := range s.objects {
		fmt.Fprintf(&b, "\n%q %s", o.origin.Name, o.version)
	}
	return b.String()
}

// read reads all files. It fails as a whole if the directory cannot be listed.
func (d *directory) read() (snapshot, error) {
	list, err := os.ReadDir(d.path)
	if err != nil {
		return snapshot{}, fmt.Errorf("read directory of kubeconfigs: %w", err)
	}
	var out snapshot
	ids := map[string]mesh.ClusterID{}
	for _, f := range list { // ordered by name
		// Mounted volumes hold their data behind links whose names begin with "..".
		if strings.HasPrefix(f.Name(), ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(f.Name())) {
			continue
		}
		if len(out.objects) == maxFiles {
			return snapshot{}, fmt.Errorf("read directory of kubeconfigs %s: it holds more than %d files", d.path, maxFiles)
		}
		path := filepath.Join(d.path, f.Name())
		o, gone := d.readFile(path)
		if gone {
			continue
		}
		if id := o.entries[0].id; id != "" {
			ids[path] = id
		}
		out.objects = append(out.objects, o)
	}
	d.ids = ids
	return out, nil
}

// readFile reads one file; gone if there is none any more, or it is no file.
func (d *directory) readFile(path string) (o object, gone bool) {
	e := entry{id: d.ids[path]}
	raw, err := readRegular(path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, errNotRegular):
		return object{}, true
	case err != nil:
		e.problem = err.Error()
	default:
		e.raw, e.content = raw, contentOf(raw)
		file, err := parseKubeconfig(raw)
		if err != nil {
			e.problem = err.Error()
		} else {
			e.id = cmp.Or(mesh.ClusterID(file.clusterName()), e.id)
		}
	}
	// What the file was for last is part of what was read of it.
	return object{origin: Origin{Name: path}, version: fmt.Sprintf("%s %q %q", e.content, e.id, e.problem), entries: []entry{e}}, false
}

var errNotRegular = errors.New("not a regular file")

// readRegular reads a file, following links, up to the limit of a kubeconfig.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path) // before opening: opening a pipe would block
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	raw, err := io.ReadAll(io.LimitReader(f, MaxKubeconfig+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return raw, nil
}
