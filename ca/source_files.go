package ca

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// DefaultCADir is where Istio's chart mounts the Secret cacerts.
const DefaultCADir = "/etc/cacerts"

// FileSource reads issuing material from a directory, usually a mounted Secret.
type FileSource struct {
	// LeaveGenerated leaves a CA that is marked as generated to [SelfSigned]: it is
	// that one's Secret which is mounted. Set it before use.
	LeaveGenerated bool

	dir    string
	now    func() time.Time
	object mesh.ObjectRef
}

// NewFileSource returns a source for a directory ("" means [DefaultCADir]).
// Events about it are attached to the object; clock may be nil.
func NewFileSource(dir string, object mesh.ObjectRef, clock func() time.Time) *FileSource {
	if dir == "" {
		dir = DefaultCADir
	}
	return &FileSource{dir: dir, now: clockOrSystem(clock), object: object}
}

// Name implements [Source].
func (f *FileSource) Name() string { return "directory " + f.dir }

// Object implements [Source].
func (f *FileSource) Object() mesh.ObjectRef { return f.object }

// Load implements [Source]. A directory that does not exist or holds none of
// the files is no source; the chart mounts an optional Secret as an empty one.
func (f *FileSource) Load(context.Context) (*Bundle, error) {
	if f.LeaveGenerated {
		if _, err := os.Stat(filepath.Join(f.dir, fileGenerated)); err == nil {
			return nil, fmt.Errorf("load CA bundle from %s: it is a self-signed one: %w", f.Name(), ErrNoBundle)
		}
	}
	files, err := readFiles(f.dir)
	if err != nil {
		return nil, fmt.Errorf("load CA bundle from %s: %w", f.Name(), err)
	}
	return ParseBundle(f.Name(), files, f.now())
}

// readFiles reads the files of a bundle that exist in a directory.
func readFiles(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range bundleFileNames() {
		text, err := readBounded(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = text
	}
	return files, nil
}

// readBounded reads one octet more than allowed at most, so that ParseBundle
// can say that the file is too long.
func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return io.ReadAll(io.LimitReader(file, maxBundleFile+1))
}

// Watch implements [Source].
func (f *FileSource) Watch(ctx context.Context, changed func()) error {
	return watchDirs(ctx, []string{f.dir}, changed)
}
