package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// RootOptions say what root to make.
type RootOptions struct {
	// Dir is made if it does not exist. No file in it is overwritten.
	Dir string
	// Organization and CommonName are its subject. Defaults "Istio", "Root CA".
	Organization, CommonName string
	// Lifetime. Default 10 years.
	Lifetime time.Duration
	Clock    func() time.Time
}

// MakeRoot makes an offline root and writes it under the four names that
// Istio's users know: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem. The
// key is readable by its owner only. It belongs into a safe: what goes into a
// cluster is an intermediate.
func MakeRoot(o RootOptions) (*x509.Certificate, error) {
	now := clockOrSystem(o.Clock)()
	if o.Lifetime == 0 {
		o.Lifetime = 10 * 365 * 24 * time.Hour
	}
	b, err := selfSign(rootSpec{
		Organization: stringOr(o.Organization, "Istio"), CommonName: stringOr(o.CommonName, "Root CA"),
		NotBefore: now.Add(-backdate), NotAfter: now.Add(o.Lifetime),
	}, o.Dir)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	files, err := b.Files()
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	files[fileCertChain] = files[fileCACert]
	if err := writeNew(o.Dir, files); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	return b.Cert, nil
}

// IntermediateOptions say what intermediate to make.
type IntermediateOptions struct {
	// RootDir holds what MakeRoot wrote; Dir is where the intermediate goes.
	RootDir, Dir string
	// Cluster is the cluster it is for: part of its subject.
	Cluster string
	// Organization of its subject. Default "Istio".
	Organization string
	// Lifetime, capped by the root's end. Default 2 years.
	Lifetime time.Duration
	Clock    func() time.Time
}

// MakeIntermediate makes an issuer for one cluster under an offline root and
// writes ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem: the content
// of that cluster's Secret cacerts. It can sign workloads only, no further CA.
func MakeIntermediate(o IntermediateOptions) (*x509.Certificate, error) {
	now := clockOrSystem(o.Clock)()
	rootFiles, err := readFiles(o.RootDir)
	if err != nil {
		return nil, fmt.Errorf("make intermediate: read root: %w", err)
	}
	root, err := ParseBundle("directory "+o.RootDir, rootFiles, now)
	if err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	if o.Lifetime == 0 {
		o.Lifetime = 2 * 365 * 24 * time.Hour
	}
	key, err := newIssuingKey()
	if err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	subject := pkix.Name{Organization: []string{stringOr(o.Organization, "Istio")}, CommonName: "Intermediate CA"}
	if o.Cluster != "" {
		subject.Locality = []string{o.Cluster}
	}
	tmpl, err := caTemplate(subject, now.Add(-backdate), earlier(now.Add(o.Lifetime), root.NotAfter()))
	if err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	tmpl.MaxPathLen, tmpl.MaxPathLenZero = 0, true
	cert, err := createCA(tmpl, root.Cert, key.Public(), root.key)
	if err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	b := &Bundle{Cert: cert, Chain: []*x509.Certificate{cert}, Anchor: root.Anchor, Roots: root.Roots, key: key}
	b.Chain = append(b.Chain, root.Chain...)
	files, err := b.Files()
	if err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	// Istio's own scripts put the root at the end of the chain.
	files[fileCertChain] = append(files[fileCertChain], encodeCertificates(root.Anchor)...)
	if err := writeNew(o.Dir, files); err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	return cert, nil
}

// writeNew writes all files or none: it looks first and never overwrites.
func writeNew(dir string, files map[string][]byte) error {
	if dir == "" {
		return errors.New("no directory is named")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(files))
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s exists already: name another directory or move it away", filepath.Join(dir, name))
		}
	}
	for i, name := range names {
		if err := writeFileNew(filepath.Join(dir, name), files[name], modeOf(name)); err != nil {
			for _, done := range names[:i] {
				_ = os.Remove(filepath.Join(dir, done))
			}
			return err
		}
	}
	return nil
}

func modeOf(name string) fs.FileMode {
	if name == fileCAKey {
		return 0o600
	}
	return 0o644
}

// writeFileNew fails if the file exists.
func writeFileNew(path string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

func stringOr(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
