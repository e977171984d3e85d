package ca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// ServingFiles name a certificate for the control plane's own servers that
// somebody else issues, all three in PEM.
type ServingFiles struct {
	// Cert is the certificate with what is between it and its root, Key its key.
	Cert, Key string
	// Roots are what clients verify it by. They are told to trust them beside the
	// roots of the mesh; certificates of clients must be of the mesh all the same.
	Roots string
}

// servingMaterial is what was read of ServingFiles last.
type servingMaterial struct {
	cert  *tls.Certificate
	roots []*x509.Certificate
}

// load reads and validates the files whole: the key matches, the certificate is
// valid now and verifies under the roots.
func (f ServingFiles) load(now time.Time) (*servingMaterial, error) {
	texts := map[string][]byte{}
	for _, path := range []string{f.Cert, f.Key, f.Roots} {
		text, err := readBounded(path)
		if err != nil {
			return nil, fmt.Errorf("read serving certificate: %w", err)
		}
		if len(text) > maxBundleFile {
			return nil, fmt.Errorf("read serving certificate: %s is longer than %d octets: check that it is the right file", path, maxBundleFile)
		}
		texts[path] = text
	}
	p := &bundleParser{origin: "files of the serving certificate", files: texts}
	roots, err := p.certificates(f.Roots, true)
	if err != nil {
		return nil, err
	}
	certs, err := p.certificates(f.Cert, true)
	if err != nil {
		return nil, err
	}
	key, err := parsePrivateKey(texts[f.Key])
	if err != nil {
		return nil, p.fail(f.Key, err.Error(), "write the private key of "+f.Cert+" in PEM form")
	}
	if !equalKeys(certs[0].PublicKey, key.Public()) {
		return nil, p.fail(f.Key, "does not match the certificate in "+f.Cert, "put key and certificate of one another there, both at once")
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now}); err != nil {
		return nil, p.fail(f.Cert, fmt.Sprintf("does not verify under %s: %v", f.Roots, err), "renew it, or let the roots hold the one above it")
	}
	m := &servingMaterial{cert: &tls.Certificate{PrivateKey: key, Leaf: certs[0]}, roots: dedupe(roots)}
	for _, c := range certs {
		m.cert.Certificate = append(m.cert.Certificate, c.Raw)
	}
	return m, nil
}

// renewFromFiles takes over what the files hold if it is good.
func (s *Serving) renewFromFiles() error {
	m, err := s.cfg.Files.load(s.now())
	if err != nil {
		return err
	}
	before := s.material.Swap(m)
	s.cert.Store(m.cert)
	if before == nil || !before.cert.Leaf.Equal(m.cert.Leaf) {
		s.log.Info("serving certificate read", zap.String("file", s.cfg.Files.Cert), zap.Time("notAfter", m.cert.Leaf.NotAfter))
		for _, name := range s.cfg.DNSNames {
			if m.cert.Leaf.VerifyHostname(name) != nil {
				s.log.Warn("serving certificate lacks a name under which proxies may call", zap.String("file", s.cfg.Files.Cert), zap.String("name", name))
			}
		}
	}
	if before == nil || !slices.EqualFunc(before.roots, m.roots, (*x509.Certificate).Equal) {
		s.cfg.Authority.notify() // what everybody is to trust has changed
	}
	return nil
}

// watchFiles calls changed when one of the files may have changed.
func (s *Serving) watchFiles(ctx context.Context, changed func()) {
	f := s.cfg.Files
	dirs := []string{filepath.Dir(f.Cert), filepath.Dir(f.Key), filepath.Dir(f.Roots)}
	slices.Sort(dirs)
	if err := watchDirs(ctx, slices.Compact(dirs), changed); err != nil {
		s.log.Warn("files of the serving certificate are looked at from time to time only", zap.Error(err))
	}
}

// watchDirs calls changed after something in the directories may have changed,
// until the context ends. A directory that is not there is not watched.
func watchDirs(ctx context.Context, dirs []string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %q: %w", dirs, err)
	}
	defer func() { _ = w.Close() }()
	for _, dir := range dirs {
		_ = w.Add(dir) // not there: the periodic look finds it when it comes
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return nil
			}
			changed()
		case _, ok := <-w.Errors:
			if !ok {
				return nil
			}
			changed() // events were lost: look
		}
	}
}
