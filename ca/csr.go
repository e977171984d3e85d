package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxCSR bounds a certificate request in PEM form, in octets. One with an
// RSA-8192 key has about 4 KiB.
const maxCSR = 32 << 10

// ErrBadCSR is wrapped by every error about a certificate request that its
// sender has to put right; the text may be sent back.
var ErrBadCSR = errors.New("invalid certificate request")

// parseCSR reads the key of a certificate request and checks that its sender
// holds it. Of the rest of it nothing is used: names come from the credential,
// the certificate's properties from us.
func parseCSR(text []byte) (crypto.PublicKey, error) {
	if len(text) > maxCSR {
		return nil, fmt.Errorf("%w: longer than %d octets", ErrBadCSR, maxCSR)
	}
	block, rest := pem.Decode(text)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: want exactly one PEM block", ErrBadCSR)
	}
	if block.Type != pemCSR && block.Type != pemCSRLegacy {
		return nil, fmt.Errorf("%w: want a PEM block of type %q", ErrBadCSR, pemCSR)
	}
	if key, ok := keyOfP256(block.Bytes); ok {
		return key, nil
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: cannot be parsed: %w", ErrBadCSR, err)
	}
	// The key first: checking a signature with a huge key is dear.
	if err := checkPublicKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadCSR, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: its signature does not verify with its key: %w", ErrBadCSR, err)
	}
	return csr.PublicKey, nil
}
