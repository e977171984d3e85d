package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// Bounds of RSA keys, in bits. Above the upper one a signature check costs an
// attacker nothing and us much.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// PEM block types.
const (
	pemCertificate = "CERTIFICATE"
	pemCSR         = "CERTIFICATE REQUEST"
	pemCSRLegacy   = "NEW CERTIFICATE REQUEST"
	pemCRL         = "X509 CRL"
	pemECKey       = "EC PRIVATE KEY"
	pemRSAKey      = "RSA PRIVATE KEY"
	pemPKCS8Key    = "PRIVATE KEY"
)

// checkPublicKey allows the key types that every proxy can verify and nobody
// can break: ECDSA on P-256 and P-384, RSA of 2048 to 8192 bits, Ed25519.
func checkPublicKey(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("ECDSA curve %s is not supported: use P-256 or P-384", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("RSA key of %d bits is not supported: use %d to %d bits", bits, minRSABits, maxRSABits)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("key type %T is not supported: use ECDSA P-256 or P-384, RSA or Ed25519", key)
}

// newIssuingKey makes a P-256 key: signing with it is five times as fast as
// with RSA-2048.
func newIssuingKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return key, nil
}

// parsePrivateKey reads the one private key of a PEM text, in any of the forms
// that istiod and openssl write.
func parsePrivateKey(text []byte) (crypto.Signer, error) {
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("holds no PEM block with a private key")
		}
		key, err := parseKeyBlock(block)
		if err != nil {
			return nil, err
		}
		if key != nil {
			return key, nil
		}
	}
}

// parseKeyBlock returns nil for a block that is no key ("EC PARAMETERS").
func parseKeyBlock(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case pemECKey:
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case pemRSAKey:
		if block.Headers["DEK-Info"] != "" {
			return nil, errors.New("is encrypted: store it without a passphrase")
		}
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case pemPKCS8Key:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("is encrypted: store it without a passphrase")
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot be parsed: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key type %T cannot sign", key)
	}
	if err := checkPublicKey(signer.Public()); err != nil {
		return nil, err
	}
	return signer, nil
}

// encodePrivateKey writes a key as istiod does: SEC 1 for ECDSA, PKCS #1 for
// RSA, PKCS #8 for the rest.
func encodePrivateKey(key crypto.Signer) ([]byte, error) {
	block := &pem.Block{}
	var err error
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		block.Type = pemECKey
		block.Bytes, err = x509.MarshalECPrivateKey(k)
	case *rsa.PrivateKey:
		block.Type, block.Bytes = pemRSAKey, x509.MarshalPKCS1PrivateKey(k)
	default:
		block.Type = pemPKCS8Key
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}

// encodeCertificates writes certificates one after the other; the text ends in
// a newline.
func encodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})...)
	}
	return out
}

// fingerprint names a certificate: the hexadecimal SHA-256 of its DER form.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// anchorOf names what a verifier needs to know of a root to accept what is
// under it: subject and key. A root that was issued anew with the same key and
// subject (istiod renews its own so) has the same anchor, and whoever holds
// either accepts what is signed by the other.
func anchorOf(c *x509.Certificate) string {
	h := sha256.New()
	h.Write(c.RawSubject)
	h.Write([]byte{0})
	h.Write(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(h.Sum(nil))
}

func equalKeys(a, b crypto.PublicKey) bool {
	eq, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(b)
}
