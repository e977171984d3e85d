package ca

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Names of files in a directory and of keys in a Secret that hold issuing
// material, in the form of Istio and in that of a kubernetes.io/tls Secret.
const (
	fileCACert    = "ca-cert.pem"
	fileCAKey     = "ca-key.pem"
	fileCertChain = "cert-chain.pem"
	fileRootCert  = "root-cert.pem"
	fileCRL       = "ca-crl.pem"

	fileTLSCert = "tls.crt"
	fileTLSKey  = "tls.key"
	fileTLSRoot = "ca.crt"
)

// Bounds on issuing material.
const (
	maxBundleFile  = 1 << 20 // octets
	maxBundleCerts = 200
)

// bundleFileNames are all files that may be read, nothing else is.
func bundleFileNames() []string {
	return []string{fileCACert, fileCAKey, fileCertChain, fileRootCert, fileCRL, fileTLSCert, fileTLSKey, fileTLSRoot}
}

// ErrNoBundle means that there is no issuing material: none of its files
// exists. Material that is there but not whole is another error.
var ErrNoBundle = errors.New("no CA bundle")

// BundleError says which part of issuing material is bad and how to mend it.
type BundleError struct {
	// Origin is the directory or the Secret.
	Origin string
	// File is the file or the key of the Secret.
	File string
	// Problem and Fix complete the sentence.
	Problem, Fix string
}

// Error implements error.
func (e *BundleError) Error() string {
	return fmt.Sprintf("load CA bundle from %s: %s: %s: %s", e.Origin, e.File, e.Problem, e.Fix)
}

// Bundle is issuing material that belongs together: an issuing certificate with
// its key, the chain up to a root, and the roots to trust. It is immutable.
type Bundle struct {
	// Origin says where it came from, for people.
	Origin string
	// Cert is the issuing certificate.
	Cert *x509.Certificate
	// Chain leads from Cert to below the anchor; empty if Cert is a root.
	Chain []*x509.Certificate
	// Anchor is the root under which Cert verifies.
	Anchor *x509.Certificate
	// Roots are all roots to trust, Anchor among them.
	Roots []*x509.Certificate
	// CRLs are the revocation lists and CRLPEM their text, as given.
	CRLs   []*x509.RevocationList
	CRLPEM []byte

	key crypto.Signer
}

// ID names the issuer.
func (b *Bundle) ID() string { return fingerprint(b.Cert) }

// NotAfter is the moment at which the first certificate between the issuer and
// its root ends: nothing issued can outlive it.
func (b *Bundle) NotAfter() time.Time {
	end := b.Cert.NotAfter
	for _, c := range b.Chain {
		end = earlier(end, c.NotAfter)
	}
	return earlier(end, b.Anchor.NotAfter)
}

// NotBefore is the moment from which all of them are valid.
func (b *Bundle) NotBefore() time.Time {
	start := b.Cert.NotBefore
	for _, c := range append(slices.Clone(b.Chain), b.Anchor) {
		if c.NotBefore.After(start) {
			start = c.NotBefore
		}
	}
	return start
}

// Digest changes whenever anything of the bundle does.
func (b *Bundle) Digest() string {
	h := sha256.New()
	for _, part := range [][]*x509.Certificate{{b.Cert}, b.Chain, b.Roots} {
		for _, c := range part {
			h.Write(c.Raw)
		}
		h.Write([]byte{0})
	}
	h.Write(b.CRLPEM)
	return hex.EncodeToString(h.Sum(nil))
}

// Files encodes the bundle in the form of Istio, the private key included.
func (b *Bundle) Files() (map[string][]byte, error) {
	key, err := encodePrivateKey(b.key)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{
		fileCACert:    encodeCertificates(b.Cert),
		fileCAKey:     key,
		fileCertChain: encodeCertificates(b.Chain...),
		fileRootCert:  encodeCertificates(b.Roots...),
	}
	if len(b.CRLPEM) > 0 {
		out[fileCRL] = b.CRLPEM
	}
	return out, nil
}

// ParseBundle reads and validates issuing material: the key matches, the chain
// verifies up to a root, the issuing certificate may issue, nothing on the way
// is expired at the time now (not checked if now is zero). It fails with
// [ErrNoBundle] if none of the files is there, else with a [BundleError].
func ParseBundle(origin string, files map[string][]byte, now time.Time) (*Bundle, error) {
	p, err := pickFiles(origin, files)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Origin: origin}
	certs, err := p.certificates(p.cert, true)
	if err != nil {
		return nil, err
	}
	b.Cert = certs[0]
	if err := p.readKey(b); err != nil {
		return nil, err
	}
	if b.Roots, err = p.certificates(p.root, true); err != nil {
		return nil, err
	}
	b.Roots = dedupe(b.Roots)
	between := certs[1:]
	if p.chain != "" {
		chain, err := p.certificates(p.chain, false)
		if err != nil {
			return nil, err
		}
		between = append(slices.Clone(between), chain...)
	}
	if err := p.checkIssuer(b.Cert, now); err != nil {
		return nil, err
	}
	if err := p.buildChain(b, between, now); err != nil {
		return nil, err
	}
	return b, p.readCRL(b)
}

// bundleParser reads the files of one bundle in one of the two forms; it knows
// their names for its errors.
type bundleParser struct {
	origin                 string
	files                  map[string][]byte
	cert, key, chain, root string
}

func pickFiles(origin string, files map[string][]byte) (*bundleParser, error) {
	p := &bundleParser{origin: origin, files: files}
	switch {
	case has(files, fileCAKey) || has(files, fileCACert):
		p.cert, p.key, p.chain, p.root = fileCACert, fileCAKey, fileCertChain, fileRootCert
	case has(files, fileTLSKey) || has(files, fileTLSCert):
		p.cert, p.key, p.root = fileTLSCert, fileTLSKey, fileTLSRoot
	case has(files, fileRootCert) || has(files, fileCertChain):
		return nil, p.fail(fileCAKey, "missing", "add the issuing key and its certificate, or remove the other files to get a self-signed CA")
	default:
		return nil, fmt.Errorf("load CA bundle from %s: %w", origin, ErrNoBundle)
	}
	for _, name := range []string{p.cert, p.key, p.root} {
		if !has(files, name) {
			return nil, p.fail(name, "missing or empty", "add it: "+p.cert+", "+p.key+" and "+p.root+" are all needed")
		}
	}
	for _, name := range []string{p.cert, p.key, p.chain, p.root, fileCRL} {
		if len(files[name]) > maxBundleFile {
			return nil, p.fail(name, fmt.Sprintf("longer than %d octets", maxBundleFile), "check that it is the right file")
		}
	}
	return p, nil
}

func has(files map[string][]byte, name string) bool {
	return len(bytes.TrimSpace(files[name])) > 0
}

func (p *bundleParser) fail(file, problem, fix string) error {
	return &BundleError{Origin: p.origin, File: file, Problem: problem, Fix: fix}
}

// certificates reads all certificates of a file and nothing else: a private key
// among them would be handed to every proxy.
func (p *bundleParser) certificates(file string, need bool) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	rest := p.files[file]
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != pemCertificate {
			return nil, p.fail(file, fmt.Sprintf("holds a PEM block of type %q", block.Type), "keep certificates only in this file")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, p.fail(file, fmt.Sprintf("certificate %d cannot be parsed: %v", len(out)+1, err), "write the file anew")
		}
		if out = append(out, c); len(out) > maxBundleCerts {
			return nil, p.fail(file, fmt.Sprintf("holds more than %d certificates", maxBundleCerts), "check that it is the right file")
		}
	}
	// The decoder silently skips a block that is cut off: count what begins.
	if len(bytes.TrimSpace(rest)) > 0 || bytes.Count(p.files[file], []byte("-----BEGIN ")) != len(out) {
		return nil, p.fail(file, "holds text that is not PEM, perhaps because it is half written", "write the file anew, whole")
	}
	if need && len(out) == 0 {
		return nil, p.fail(file, "holds no certificate", "add it in PEM form")
	}
	return out, nil
}

func (p *bundleParser) readKey(b *Bundle) error {
	key, err := parsePrivateKey(p.files[p.key])
	if err != nil {
		return p.fail(p.key, err.Error(), "write the private key of "+p.cert+" in PEM form")
	}
	if !equalKeys(b.Cert.PublicKey, key.Public()) {
		return p.fail(p.key, "does not match the certificate in "+p.cert, "put key and certificate of one another into the bundle, both at once")
	}
	b.key = key
	return nil
}

func (p *bundleParser) checkIssuer(c *x509.Certificate, now time.Time) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return p.fail(p.cert, "is not a CA certificate", "issue it with basic constraints CA:TRUE")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return p.fail(p.cert, "must not sign certificates", "issue it with key usage keyCertSign")
	case now.IsZero():
		return nil
	case now.After(c.NotAfter):
		return p.fail(p.cert, "expired at "+c.NotAfter.UTC().Format(time.RFC3339), "renew it")
	case now.Before(c.NotBefore.Add(-backdate)):
		return p.fail(p.cert, "is not valid before "+c.NotBefore.UTC().Format(time.RFC3339), "check the clocks or wait")
	}
	return nil
}

// buildChain finds the shortest way from the issuing certificate to a root.
// Roots and duplicates in the chain file, which Istio's scripts put there, do
// not get into the chain.
func (p *bundleParser) buildChain(b *Bundle, between []*x509.Certificate, now time.Time) error {
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range b.Roots {
		roots.AddCert(r)
	}
	for _, c := range between {
		inter.AddCert(c)
	}
	if now.IsZero() {
		now = b.Cert.NotAfter // some moment at which it may verify
	} else if now.Before(b.Cert.NotBefore) {
		now = b.Cert.NotBefore // within the backdate, see checkIssuer
	}
	chains, err := b.Cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		where, fix := p.root, "let it hold the root above "+p.cert
		if p.chain != "" {
			fix += ", and " + p.chain + " every certificate between them"
		}
		return p.fail(where, fmt.Sprintf("%s does not verify under it: %v", p.cert, err), fix)
	}
	best := slices.MinFunc(chains, func(x, y []*x509.Certificate) int { return len(x) - len(y) })
	b.Anchor = best[len(best)-1]
	if len(best) > 1 {
		b.Chain = best[:len(best)-1]
	}
	return nil
}

func (p *bundleParser) readCRL(b *Bundle) error {
	if !has(p.files, fileCRL) {
		return nil
	}
	for rest := p.files[fileCRL]; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 || len(b.CRLs) == 0 {
				return p.fail(fileCRL, "holds no list or text that is not PEM", "write the file anew, whole, or remove it")
			}
			b.CRLPEM = p.files[fileCRL]
			return nil
		}
		if block.Type != pemCRL || len(b.CRLs) >= maxBundleCerts {
			return p.fail(fileCRL, fmt.Sprintf("holds a PEM block of type %q, or too many", block.Type), "keep revocation lists only in this file")
		}
		crl, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return p.fail(fileCRL, fmt.Sprintf("list %d cannot be parsed: %v", len(b.CRLs)+1, err), "write the file anew")
		}
		b.CRLs = append(b.CRLs, crl)
	}
}

// dedupe keeps the first of equal certificates.
func dedupe(certs []*x509.Certificate) []*x509.Certificate {
	seen := map[string]bool{}
	var out []*x509.Certificate
	for _, c := range certs {
		if id := fingerprint(c); !seen[id] {
			seen[id] = true
			out = append(out, c)
		}
	}
	return out
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
