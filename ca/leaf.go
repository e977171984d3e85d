package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
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
	// algorithm and issuer are encoded.
	algorithm, issuer []byte
	hash              crypto.Hash
	// extensions are key usage, extended key usage, basic constraints and the
	// issuer's key ID, each encoded, one after the other.
	extensions []byte
}

// newLeafTemplate prepares an issuer and tries its key once.
func newLeafTemplate(b *Bundle) (*leafTemplate, error) {
	t := &leafTemplate{issuer: b.Cert.RawSubject}
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
	for _, e := range cert.Extensions {
		text, err := asn1.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("try issuing key from %s: %w", b.Origin, err)
		}
		t.extensions = append(t.extensions, text...)
	}
	return t, nil
}

func (t *leafTemplate) chooseAlgorithm(key crypto.PublicKey) (err error) {
	var id pkix.AlgorithmIdentifier
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		id.Algorithm, t.hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256
		if k.Curve.Params().BitSize == 384 {
			id.Algorithm, t.hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384
		}
	case *rsa.PublicKey:
		id = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}
		t.hash = crypto.SHA256
	case ed25519.PublicKey:
		id.Algorithm = asn1.ObjectIdentifier{1, 3, 101, 112}
	default:
		return fmt.Errorf("issuing key type %T is not supported", key)
	}
	t.algorithm, err = asn1.Marshal(id)
	return err
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
	return der(tagSequence, tbs, t.algorithm, der(tagBitString, []byte{0}, sig)), nil
}

func (t *leafTemplate) encode(l leaf) ([]byte, error) {
	spki, err := encodePublicKey(l.key)
	if err != nil {
		return nil, err
	}
	san, err := l.san()
	if err != nil {
		return nil, err
	}
	return der(tagSequence,
		[]byte{0xa0, 3, tagInteger, 1, 2}, // version 3
		encodeSerial(l.serial),
		t.algorithm,
		t.issuer,
		der(tagSequence, encodeTime(l.notBefore), encodeTime(l.notAfter)),
		[]byte{tagSequence, 0}, // no subject: the SAN is all
		spki,
		der(0xa3, der(tagSequence, t.extensions, san)),
	), nil
}

// san is the subject alternative name, critical because there is no subject.
func (l leaf) san() ([]byte, error) {
	const tagDNS, tagURI = 0x82, 0x86
	var names []byte
	add := func(tag byte, name string) error {
		for i := range len(name) {
			if name[i] < 0x20 || name[i] > 0x7e {
				return fmt.Errorf("name %q is not printable ASCII", name)
			}
		}
		names = append(names, der(tag, []byte(name))...)
		return nil
	}
	if l.uri != nil {
		if err := add(tagURI, l.uri.String()); err != nil {
			return nil, err
		}
	}
	for _, n := range l.dnsNames {
		if err := add(tagDNS, n); err != nil {
			return nil, err
		}
	}
	if len(names) == 0 {
		return nil, errors.New("certificate without a name")
	}
	return der(tagSequence,
		[]byte{tagOID, 3, 0x55, 0x1d, 0x11}, // subjectAltName
		[]byte{tagBoolean, 1, 0xff},         // critical
		der(tagOctetString, der(tagSequence, names)),
	), nil
}

// Tags of ASN.1 types.
const (
	tagBoolean         = 1
	tagInteger         = 2
	tagBitString       = 3
	tagOctetString     = 4
	tagOID             = 6
	tagUTCTime         = 23
	tagGeneralizedTime = 24
	tagSequence        = 0x30
)

// der encodes one value whose content is the parts one after the other.
func der(tag byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	out := make([]byte, 0, n+6)
	out = append(out, tag)
	switch {
	case n < 1<<7:
		out = append(out, byte(n))
	case n < 1<<8:
		out = append(out, 0x81, byte(n))
	case n < 1<<16:
		out = append(out, 0x82, byte(n>>8), byte(n))
	default:
		out = append(out, 0x83, byte(n>>16), byte(n>>8), byte(n))
	}
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func encodeSerial(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...) // not negative
	}
	return der(tagInteger, b)
}

// encodeTime follows RFC 5280: two digits for years up to 2049, then four.
func encodeTime(t time.Time) []byte {
	t = t.UTC()
	if y := t.Year(); y >= 1950 && y < 2050 {
		return der(tagUTCTime, t.AppendFormat(nil, "060102150405Z"))
	}
	return der(tagGeneralizedTime, t.AppendFormat(nil, "20060102150405Z"))
}

// encodePublicKey is x509.MarshalPKIXPublicKey with a short way for the keys
// that most workloads could have.
func encodePublicKey(key crypto.PublicKey) ([]byte, error) {
	if k, ok := key.(*ecdsa.PublicKey); ok && k.Curve == elliptic.P256() {
		point, err := k.Bytes()
		if err != nil {
			return nil, fmt.Errorf("encode public key: %w", err)
		}
		return der(tagSequence, []byte(algorithmP256), der(tagBitString, []byte{0}, point)), nil
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return spki, nil
}

// encodeDER writes a certificate in PEM. It is encoding/pem without headers, and
// without the writers that break its lines.
func encodeDER(der []byte) string {
	const perLine = 48 // octets in the 64 characters of a line
	const begin, end = "-----BEGIN " + pemCertificate + "-----\n", "-----END " + pemCertificate + "-----\n"
	out := make([]byte, 0, len(begin)+len(end)+base64.StdEncoding.EncodedLen(len(der))+len(der)/perLine+1)
	out = append(out, begin...)
	for len(der) > 0 {
		n := min(perLine, len(der))
		out = append(base64.StdEncoding.AppendEncode(out, der[:n]), '\n')
		der = der[n:]
	}
	return string(append(out, end...))
}
