package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
)

// algorithmP256 is the algorithm identifier of a P-256 key: id-ecPublicKey,
// prime256v1.
const algorithmP256 = "\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"

// algorithmECDSASHA256 is the algorithm identifier of its usual signature.
const algorithmECDSASHA256 = "\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"

// keyOfP256 reads the key of a certificate request and checks the signature, if
// the request is of the plain form that most workloads send: P-256, SHA-256,
// DER without oddities. All others are left to crypto/x509 (false).
//
// It exists because of cost: crypto/x509 takes a request apart into names and
// extensions, which is more work than all of ours and is then thrown away, since
// only the key is used. What the signature covers is all the same here and
// there; names and attributes are passed over unread.
func keyOfP256(request []byte) (*ecdsa.PublicKey, bool) {
	whole, rest, ok := derValue(request, tagSequence)
	if !ok || len(rest) > 0 {
		return nil, false
	}
	_, after, ok := derValue(whole, tagSequence)
	if !ok {
		return nil, false
	}
	signed := whole[:len(whole)-len(after)]
	signature, found := bytes.CutPrefix(after, []byte(algorithmECDSASHA256))
	bits, rest, ok := derValue(signature, tagBitString)
	if !found || !ok || len(rest) > 0 || len(bits) == 0 || bits[0] != 0 {
		return nil, false
	}
	key, ok := keyOfInfo(signed)
	if !ok {
		return nil, false
	}
	digest := sha256.Sum256(signed)
	return key, ecdsa.VerifyASN1(key, digest[:], bits[1:])
}

// keyOfInfo reads the key of what a certificate request signs: version 0, a
// name, the key, attributes.
func keyOfInfo(signed []byte) (*ecdsa.PublicKey, bool) {
	info, _, _ := derValue(signed, tagSequence)
	info, found := bytes.CutPrefix(info, []byte{tagInteger, 1, 0})
	_, info, named := derValue(info, tagSequence)
	spki, attributes, keyed := derValue(info, tagSequence)
	if !found || !named || !keyed {
		return nil, false
	}
	if _, rest, ok := derValue(attributes, 0xa0); !ok || len(rest) > 0 {
		return nil, false
	}
	spki, found = bytes.CutPrefix(spki, []byte(algorithmP256))
	bits, rest, ok := derValue(spki, tagBitString)
	if !found || !ok || len(rest) > 0 || len(bits) == 0 || bits[0] != 0 {
		return nil, false
	}
	// It refuses points that are not on the curve.
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), bits[1:])
	return key, err == nil
}

// derValue takes one value of a tag off the front of DER: its content, and what
// follows it. Lengths that are not as short as they can be are refused.
func derValue(in []byte, tag byte) (content, rest []byte, ok bool) {
	if len(in) < 2 || in[0] != tag {
		return nil, nil, false
	}
	n, head := int(in[1]), 2
	if n >= 1<<7 {
		octets := n & 0x7f
		if octets == 0 || octets > 2 || len(in) < 2+octets {
			return nil, nil, false
		}
		n = 0
		for _, b := range in[2 : 2+octets] {
			n = n<<8 | int(b)
		}
		if head += octets; n < 1<<7 || octets == 2 && n < 1<<8 {
			return nil, nil, false
		}
	}
	if len(in)-head < n {
		return nil, nil, false
	}
	return in[head : head+n], in[head+n:], true
}
