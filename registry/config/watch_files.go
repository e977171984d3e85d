package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	// settle is how long files must be quiet before they are read, so that one
	// that is being written is not read by halves.
	settle = 50 * time.Millisecond
	// reread is how often files are read without being told of a change: some
	// file systems tell nothing.
	reread = 10 * time.Second
	// maxFile bounds the size of a file, as a ConfigMap is bounded by the API server.
	maxFile = 4 << 20
)

// watchFiles follows the folders that the files are in: that way a file that is
// replaced is seen, and also a mounted ConfigMap, in which the names stay and a
// link beside them is swapped.
func (w *Watcher) watchFiles(ctx context.Context) error {
	fw, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch mesh configuration files: %w", err)
	}
	defer func() { _ = fw.Close() }()
	for _, f := range []string{w.cfg.Files.Mesh, w.cfg.Files.Networks} {
		if f == "" {
			continue
		}
		// A folder that does not exist yet is found by rereading.
		if err := fw.Add(filepath.Dir(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("watch folder of %s: %w", f, err)
		}
	}
	w.readFiles()
	quiet := time.NewTimer(settle)
	quiet.Stop()
	defer quiet.Stop()
	tick := time.NewTicker(reread)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-fw.Events:
			quiet.Reset(settle)
		case err := <-fw.Errors:
			// Events may be lost; reading again makes up for it.
			w.log.Warn("watching mesh configuration files failed for a moment", zap.Error(err))
			quiet.Reset(settle)
		case <-quiet.C:
			w.readFiles()
		case <-tick.C:
			w.readFiles()
		}
	}
}

// readFiles takes what the files say now.
func (w *Watcher) readFiles() {
	named := slices.DeleteFunc([]string{w.cfg.Files.Mesh, w.cfg.Files.Networks}, func(f string) bool { return f == "" })
	ref := mesh.ObjectRef{Cluster: w.cfg.Cluster, Kind: "File", Name: strings.Join(named, ", ")}
	m, err := readFile(w.cfg.Files.Mesh)
	n, err2 := readFile(w.cfg.Files.Networks)
	if err = errors.Join(err, err2); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.refuse(ref, fmt.Errorf("read files: %w", err))
		return
	}
	w.take(ref, map[string]string{keyMesh: m, keyNetworks: n})
}

// readFile returns a file's text, "" if there is none.
func readFile(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return string(b), nil
}
