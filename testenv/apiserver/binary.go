package apiserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// binaryEnv names an isthmus-kube that is already built; nothing is built then.
const binaryEnv = "ISTHMUS_KUBE_BINARY"

const (
	binaryName  = "isthmus-kube"
	cachePrefix = "kube-"
	// unusedAfter is the age of last use at which the binary of another
	// version is removed: they are 120 MB each.
	unusedAfter = 14 * 24 * time.Hour
)

// NeedBinary makes sure that isthmus-kube is built before the test goes on,
// so that the build is not counted against the deadline of a cluster's start.
// It skips the test under -short.
func NeedBinary(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs a real kube-apiserver, which the first time takes minutes to build; not under -short")
	}
	if _, err := Binary(t.Context()); err != nil {
		t.Fatalf("build kube-apiserver for tests: %v", err)
	}
}

// Binary returns the path of isthmus-kube. It builds it if the cache does not
// hold one of the same source, Go version and platform; processes that ask at
// the same time wait for one build.
func Binary(ctx context.Context) (string, error) {
	if path := os.Getenv(binaryEnv); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("use %s: %w", binaryEnv, err)
		}
		return path, nil
	}
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	sum, err := hashSource(source)
	if err != nil {
		return "", fmt.Errorf("hash source of %s: %w", binaryName, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	root := filepath.Join(cache, "isthmus")
	path := filepath.Join(root, cachePrefix+sum, binaryName)
	if touch(path) == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("create cache directory: %w", err)
	}
	unlock, err := lockFile(ctx, filepath.Join(root, "kube.lock"))
	if err != nil {
		return "", fmt.Errorf("wait for another build of %s: %w", binaryName, err)
	}
	defer unlock()
	if touch(path) == nil { // built while we waited
		return path, nil
	}
	if err := build(ctx, source, path); err != nil {
		return "", err
	}
	removeUnused(root, filepath.Dir(path))
	return path, nil
}

// build compiles source to path, in one step as others see it.
func build(ctx context.Context, source, path string) error {
	version, err := kubernetesVersion(source)
	if err != nil {
		return err
	}
	removeLeftovers(path)
	defer removeLeftovers(path)
	temp := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())

	fmt.Fprintf(os.Stderr, "building kube-apiserver %s for tests, about 5 minutes, once per source of testenv/kube: %s\n", version, path)
	began := time.Now()
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", ldflags(version), "-o", temp, ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false")
	cmd.WaitDelay = 5 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	stop := reportProgress(began)
	err = cmd.Run()
	stop()
	if err != nil {
		return fmt.Errorf("build %s: %w\n%s", binaryName, errors.Join(err, ctx.Err()), output.Bytes())
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("install %s: %w", binaryName, err)
	}
	fmt.Fprintf(os.Stderr, "built kube-apiserver in %s\n", time.Since(began).Round(time.Second))
	return nil
}

// reportProgress says twice a minute that the build goes on, until stopped.
func reportProgress(began time.Time) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(30 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				fmt.Fprintf(os.Stderr, "still building kube-apiserver, %s so far\n", time.Since(began).Round(time.Second))
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// ldflags strip the binary and give it a version that clients can parse.
func ldflags(version string) string {
	const pkg = "k8s.io/component-base/version."
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return fmt.Sprintf("-s -w -X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s",
		pkg, version, major, minor)
}

// kubernetesVersion reads from go.mod which Kubernetes the source builds.
func kubernetesVersion(source string) (string, error) {
	mod, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("read go.mod: %w", err)
	}
	match := regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes (v\S+)`).FindSubmatch(mod)
	if match == nil {
		return "", fmt.Errorf("read go.mod: %s does not require k8s.io/kubernetes", source)
	}
	return string(match[1]), nil
}

// sourceDir finds testenv/kube: beside this file, or, where paths are trimmed
// from the build, in the module that the working directory is in.
func sourceDir() (string, error) {
	var starts []string
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		starts = append(starts, filepath.Dir(file))
	}
	if cwd, err := os.Getwd(); err == nil {
		starts = append(starts, cwd)
	}
	for _, dir := range starts {
		for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
			source := filepath.Join(dir, "testenv", "kube")
			if _, err := os.Stat(filepath.Join(source, "go.mod")); err == nil {
				return source, nil
			}
		}
	}
	return "", fmt.Errorf("find testenv/kube: not above %s; set %s to a built binary",
		strings.Join(starts, " or "), binaryEnv)
}

// hashSource covers all that the binary is made from.
func hashSource(source string) (string, error) {
	files, err := filepath.Glob(filepath.Join(source, "*.go"))
	if err != nil {
		return "", err
	}
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
	files = append(files, filepath.Join(source, "go.mod"), filepath.Join(source, "go.sum"))
	sum := sha256.New()
	_, _ = fmt.Fprintln(sum, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, name := range files {
		if err := hashFile(sum, name); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

func hashFile(sum io.Writer, name string) error {
	raw, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(sum, "%s %d\n%s\n", filepath.Base(name), len(raw), raw)
	return err
}

// touch marks the binary as used; it fails if there is none.
func touch(path string) error {
	now := time.Now()
	return os.Chtimes(path, now, now)
}

// removeLeftovers deletes what builds that were killed left beside path. The
// caller holds the lock, so none of them still goes on.
func removeLeftovers(path string) {
	temps, err := filepath.Glob(path + ".*.tmp")
	if err != nil {
		return
	}
	for _, temp := range temps {
		_ = os.Remove(temp)
	}
}

// removeUnused deletes the binaries of other versions that nobody has used
// for long. It does what it can: a full disk is not this package's to report.
func removeUnused(root, keep string) {
	old, err := filepath.Glob(filepath.Join(root, cachePrefix+"*", binaryName))
	if err != nil {
		return
	}
	for _, path := range old {
		info, err := os.Stat(path)
		if filepath.Dir(path) == keep || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && time.Since(info.ModTime()) > unusedAfter {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
}
