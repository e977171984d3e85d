package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Bounds of a folder.
const (
	maxFileSize = 64 << 20 // bytes
	maxFiles    = 20_000
	maxFolders  = 8 // nesting
)

// Clusters lists the clusters in a folder of folders: every sub-folder that
// holds YAML, itself or further down, by its name. Files directly in dir are not
// objects, and hidden folders are not clusters. The result is sorted.
func Clusters(dir string) ([]mesh.ClusterID, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	var out []mesh.ClusterID
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); err != nil || !info.IsDir() || hidden(e.Name()) {
			continue
		}
		found := false
		err := walk(path, func(name string) error {
			if ext := strings.ToLower(filepath.Ext(name)); ext == ".yaml" || ext == ".yml" {
				found = true
				return fs.SkipAll
			}
			return nil
		}, nil)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list clusters: %w", err)
		}
		if found {
			out = append(out, mesh.ClusterID(e.Name()))
		}
	}
	return out, nil
}

func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// isObjectFile reports whether a file may hold objects.
func isObjectFile(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return !hidden(name)
	}
	return false
}

// walk calls file for every file that may hold objects and folder for every
// folder below dir, dir included. Links are followed, so that the folders in
// which Kubernetes mounts ConfigMaps and Secrets work; hidden names are not.
func walk(dir string, file func(path string) error, folder func(path string)) error {
	var visit func(path string, depth int) error
	visit = func(path string, depth int) error {
		if depth > maxFolders {
			return fmt.Errorf("folder %s: nested deeper than %d levels, or a link to itself", path, maxFolders)
		}
		if folder != nil {
			folder(path)
		}
		entries, err := os.ReadDir(path)
		if errors.Is(err, fs.ErrNotExist) && depth > 0 {
			return nil // went meanwhile
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if hidden(e.Name()) {
				continue
			}
			at := filepath.Join(path, e.Name())
			info, err := os.Stat(at)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue // went meanwhile, or a link to nothing
			case err != nil:
				return err
			case info.IsDir():
				err = visit(at, depth+1)
			case info.Mode().IsRegular() && isObjectFile(e.Name()):
				err = file(at)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit(dir, 0); !errors.Is(err, fs.SkipAll) {
		return err
	}
	return nil
}

// state is what is known of one file.
type state struct {
	sum  uint64
	size int
	// stamp is what the file system said of the file before it was read, and
	// trusted that it was old enough then: a later edit gives another stamp.
	stamp   stamp
	trusted bool
	// good is the last content that could be read.
	good content
	// problem says what is wrong with the newest content, "" if nothing is; line
	// is where.
	problem string
	line    int
	// emptied: the file has just become empty. An editor may be writing it, so
	// its content counts until it is empty a second time.
	emptied bool
}

// folder is a folder of files that hold the objects of one cluster.
type folder struct {
	dir     string
	cluster mesh.ClusterID
	files   map[string]*state // by path relative to dir
}

// read brings the folder up to date. It returns the folders to watch, whether
// anything is different, and whether it should be read again soon. An error
// means that the folder as a whole could not be read: all stays as it was.
func (f *folder) read() (watch []string, changed, again bool, err error) {
	next := map[string]*state{}
	err = walk(f.dir, func(path string) error {
		name, err := filepath.Rel(f.dir, path)
		if err != nil {
			return err
		}
		if len(next) >= maxFiles {
			return fmt.Errorf("folder %s: more than %d files", f.dir, maxFiles)
		}
		if target, ok := linkedFrom(path); ok {
			watch = append(watch, target)
		}
		st, ok := f.readFile(path, f.files[name])
		if !ok {
			return nil
		}
		next[name] = st
		changed = changed || st != f.files[name]
		again = again || st.emptied
		return nil
	}, func(path string) { watch = append(watch, path) })
	if err != nil {
		return nil, false, false, err
	}
	changed = changed || len(next) != len(f.files)
	f.files = next
	slices.Sort(watch)
	return slices.Compact(watch), changed, again, nil
}

// linkedFrom returns the folder that holds the content of a file if the file
// itself is a link to elsewhere. That a folder above it is a link does not count:
// it would name a watched folder a second time.
func linkedFrom(path string) (folder string, ok bool) {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", false
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil || filepath.Dir(target) == parent {
		return "", false
	}
	return filepath.Dir(target), true
}

// stamp tells two states of a file apart, as far as the file system does.
type stamp struct {
	size     int64
	modified time.Time
	beneath  [3]int64
}

// coarse is how far apart two edits must be for file systems to give them
// different times, generously: some count seconds.
const coarse = 3 * time.Second

func stampOf(path string) (s stamp, settled bool) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, false
	}
	s = stamp{size: info.Size(), modified: info.ModTime(), beneath: beneath(info)}
	age := time.Since(s.modified)
	return s, age > coarse
}

// readFile returns the state of a file: old itself if nothing is new. ok is
// false if the file went away meanwhile.
func (f *folder) readFile(path string, old *state) (st *state, ok bool) {
	now, settled := stampOf(path)
	if old != nil && old.trusted && settled && old.stamp == now {
		return old, true // nobody has touched it: large folders are not read for one edit
	}
	text, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false
	}
	st = &state{stamp: now, trusted: settled}
	if old != nil {
		st.good = old.good
	}
	if err != nil {
		st.problem = err.Error()
		if old != nil && old.problem == st.problem {
			return old, true
		}
		return st, true
	}
	st.sum, st.size = xxhash.Sum64(text), len(text)
	if old != nil && old.sum == st.sum && old.size == st.size && (old.line != 0 || old.problem == "") && !old.emptied {
		old.stamp, old.trusted = st.stamp, st.trusted
		return old, true
	}
	if len(text) == 0 && old != nil && !old.emptied && len(old.good.objects) > 0 {
		st.emptied = true
		return st, true
	}
	good, err := parse(f.cluster, text)
	var syntax *syntaxError
	if errors.As(err, &syntax) {
		st.problem, st.line = syntax.message, syntax.line
		return st, true
	}
	st.good = good
	return st, true
}

func readBounded(path string) ([]byte, error) {
	in, err := os.Open(path) //nolint:gosec // the operator names the folder
	if err != nil {
		return nil, err
	}
	defer in.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(in, maxFileSize+1))
	if err == nil && len(text) > maxFileSize {
		err = fmt.Errorf("larger than %d MiB", maxFileSize>>20)
	}
	return text, err
}

// names lists the files in the order in which they win.
func (f *folder) names() []string { return slices.Sorted(maps.Keys(f.files)) }
