package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// leaf is what differs between two certificates of one issuer: a key, one URI
// or some DNS names, times and a number. Nothing else can be asked for.
type leaf struct {
	key                 crypto.PublicKey
	uri                 *url.URL
	dnsNames            []string
	serial              *big.Int
	notBefore, notAfter time.Time
}

// leafTemplate is what all certificates of one issuer share, encoded once.
//
// The certificates equal those of x509.CreateCertificate octet for octet (a
// test holds them to it). They are encoded here because that function verifies
// each signature that it has just made, which costs more than all the rest; we
// verify one signature per issuer instead, when it is installed, so that a key
// that does not work is found before it is used.
type leafTemplate struct {
	algorithm pkix.AlgorithmIdentifier
	hash      crypto.Hash
	issuer    asn1.RawValue
	// fixed extensions: key usage, extended key usage, basic constraints and
	// the issuer's key ID.
	extensions []pkix.Extension
}

type tbsCertificate struct {
	Version      int `asn1:"optional,explicit,default:0,tag:0"`
	SerialNumber *big.Int
	Algorithm    pkix.AlgorithmIdentifier
	Issuer       asn1.RawValue
	Validity     struct{ NotBefore, NotAfter time.Time }
	Subject      asn1.RawValue
	PublicKey    asn1.RawValue
	Extensions   []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

type signedCertificate struct {
	TBS       asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

// newLeafTemplate prepares an issuer and tries its key once.
func newLeafTemplate(b *Bundle) (*leafTemplate, error) {
	t := &leafTemplate{issuer: asn1.RawValue{FullBytes: b.Cert.RawSubject}}
	if err := t.chooseAlgorithm(b.key.Public()); err != nil {
		return nil, err
	}
	probe := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             b.Cert.NotBefore,
		NotAfter:              b.Cert.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, probe, b.Cert, b.key.Public(), b.key)
	if err != nil {
		return nil, fmt.Errorf("try issuing key from %s: %w", b.Origin, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("try issuing key from %s: %w", b.Origin, err)
	}
	t.extensions = cert.Extensions
	return t, nil
}

func (t *leafTemplate) chooseAlgorithm(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		t.algorithm.Algorithm, t.hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256
		if k.Curve.Params().BitSize == 384 {
			t.algorithm.Algorithm, t.hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384
		}
	case *rsa.PublicKey:
		t.algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}
		t.hash = crypto.SHA256
	case ed25519.PublicKey:
		t.algorithm.Algorithm = asn1.ObjectIdentifier{1, 3, 101, 112}
	default:
		return fmt.Errorf("issuing key type %T is not supported", key)
	}
	return nil
}

// sign encodes and signs one certificate.
func (t *leafTemplate) sign(l leaf, key crypto.Signer) ([]byte, error) {
	tbs, err := t.encode(l)
	if err != nil {
		return nil, err
	}
	digest := tbs
	if t.hash != 0 {
		h := t.hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	sig, err := key.Sign(rand.Reader, digest, t.hash)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return asn1.Marshal(signedCertificate{
		TBS: asn1.RawValue{FullBytes: tbs}, Algorithm: t.algorithm,
		Signature: asn1.BitString{Bytes: sig, BitLength: len(sig) * 8},
	})
}

func (t *leafTemplate) encode(l leaf) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(l.key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	san, err := l.san()
	if err != nil {
		return nil, err
	}
	c := tbsCertificate{
		Version:      2,
		SerialNumber: l.serial,
		Algorithm:    t.algorithm,
		Issuer:       t.issuer,
		Subject:      asn1.RawValue{FullBytes: []byte{0x30, 0x00}}, // no subject: the SAN is all
		PublicKey:    asn1.RawValue{FullBytes: spki},
		Extensions:   append(append(make([]pkix.Extension, 0, len(t.extensions)+1), t.extensions...), san),
	}
	c.Validity.NotBefore, c.Validity.NotAfter = l.notBefore.UTC(), l.notAfter.UTC()
	return asn1.Marshal(c)
}

// san is the subject alternative name, critical because there is no subject.
func (l leaf) san() (pkix.Extension, error) {
	const tagDNS, tagURI = 2, 6
	var names []asn1.RawValue
	if l.uri != nil {
		names = append(names, asn1.RawValue{Tag: tagURI, Class: asn1.ClassContextSpecific, Bytes: []byte(l.uri.String())})
	}
	for _, n := range l.dnsNames {
		names = append(names, asn1.RawValue{Tag: tagDNS, Class: asn1.ClassContextSpecific, Bytes: []byte(n)})
	}
	if len(names) == 0 {
		return pkix.Extension{}, errors.New("certificate without a name")
	}
	for _, n := range names {
		for _, c := range n.Bytes {
			if c < 0x20 || c > 0x7e {
				return pkix.Extension{}, fmt.Errorf("name %q is not printable ASCII", n.Bytes)
			}
		}
	}
	value, err := asn1.Marshal(names)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}, err
}

func encodeDER(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
}
