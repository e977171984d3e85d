package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func requestDER(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	block, _ := pem.Decode(agentCSR(t, key, "spiffe://cluster.local/ns/shop/sa/web"))
	require.NotNil(t, block)
	return block.Bytes
}

// The short way takes what agents send with a P-256 key and leaves the rest to
// the standard library.
func TestKeyOfP256(t *testing.T) {
	key := ecKey(t)
	got, ok := keyOfP256(requestDER(t, key))
	require.True(t, ok)
	require.True(t, key.PublicKey.Equal(got))

	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	for _, other := range []crypto.Signer{p384, rsaKey, edKey} {
		_, ok := keyOfP256(requestDER(t, other))
		require.False(t, ok, "%T", other)
		signed, err := parseCSR(agentCSR(t, other, "x:y"))
		require.NoError(t, err, "%T", other)
		require.True(t, equalKeys(other.Public(), signed), "%T", other)
	}
}

// A request of which one bit is another, or which is shorter or longer, is not
// signed by its key.
func TestKeyOfP256RefusesWhatIsChanged(t *testing.T) {
	good := requestDER(t, ecKey(t))
	for i := range good {
		for bit := range 8 {
			bad := slices.Clone(good)
			bad[i] ^= 1 << bit
			_, ok := keyOfP256(bad)
			require.False(t, ok, "octet %d, bit %d", i, bit)
		}
		_, ok := keyOfP256(good[:i])
		require.False(t, ok, "the first %d octets", i)
	}
	_, ok := keyOfP256(append(slices.Clone(good), 0))
	require.False(t, ok, "something behind it")
}

func TestDERValue(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		n    int // octets of content, -1 if it is refused
	}{
		{"empty", []byte{tagSequence, 0}, 0},
		{"short form", append([]byte{tagSequence, 127}, make([]byte, 127)...), 127},
		{"long form", append([]byte{tagSequence, 0x81, 128}, make([]byte, 128)...), 128},
		{"longer form", append([]byte{tagSequence, 0x82, 1, 0}, make([]byte, 256)...), 256},
		{"nothing", nil, -1},
		{"no length", []byte{tagSequence}, -1},
		{"another tag", []byte{tagInteger, 0}, -1},
		{"cut off", []byte{tagSequence, 2, 0}, -1},
		{"length cut off", []byte{tagSequence, 0x82, 1}, -1},
		{"without an end", []byte{tagSequence, 0x80, 0, 0}, -1},
		{"long form of a short length", append([]byte{tagSequence, 0x81, 127}, make([]byte, 127)...), -1},
		{"longer form of a long length", append([]byte{tagSequence, 0x82, 0, 200}, make([]byte, 200)...), -1},
		{"longer than anything", []byte{tagSequence, 0x83, 1, 0, 0}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			content, rest, ok := derValue(append(slices.Clone(c.in), 7), tagSequence)
			if c.n < 0 {
				_, _, ok = derValue(c.in, tagSequence)
				require.False(t, ok)
				return
			}
			require.True(t, ok)
			require.Len(t, content, c.n)
			require.Equal(t, []byte{7}, rest)
		})
	}
}

// FuzzKeyOfP256: whatever the short way takes, the standard library reads the
// same key out of, and finds signed by it.
func FuzzKeyOfP256(f *testing.F) {
	good := requestDER(f, ecKey(f))
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(bytes.Replace(good, []byte(algorithmP256), []byte(algorithmECDSASHA256), 1))
	f.Fuzz(func(t *testing.T, request []byte) {
		key, ok := keyOfP256(request)
		if !ok {
			return
		}
		csr, err := x509.ParseCertificateRequest(request)
		if err != nil {
			return // names or attributes that we do not look at
		}
		require.True(t, key.Equal(csr.PublicKey))
		require.NoError(t, csr.CheckSignature())
	})
}

func TestPEMEqualsTheStandardLibrarys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		der := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "der")
		require.Equal(t, string(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})), encodeDER(der))
	})
}
