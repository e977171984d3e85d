package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FuzzCSR: no request makes the authority panic, and what it signs is always a
// leaf with the caller's one name, of the request's key, that verifies.
func FuzzCSR(f *testing.F) {
	c := newClock()
	root := newRoot(f, "root", c.Now(), 24*time.Hour)
	a := newAuthority(f, c, root)
	good := agentCSR(f, ecKey(f), "spiffe://cluster.local/ns/shop/sa/web")
	f.Add(good, int64(86400))
	f.Add(csrOf(f, ecKey(f), &x509.CertificateRequest{
		DNSNames: []string{"x"}, Subject: pkix.Name{CommonName: "x"}, ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	}), int64(-1))
	f.Add(forgedCSR(f), int64(0))
	f.Add(good[:len(good)-40], int64(1)<<62)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n\n-----END CERTIFICATE REQUEST-----"), int64(1))
	f.Fuzz(func(t *testing.T, csr []byte, life int64) {
		id := workload("shop", "web")
		cert, err := a.Sign(SignRequest{CSR: csr, Identity: id, Lifetime: seconds(life)})
		if err != nil {
			require.ErrorIs(t, err, ErrBadCSR)
			return
		}
		leaf := verifies(t, cert.Chain, c.Now())
		require.False(t, leaf.IsCA)
		require.Len(t, leaf.URIs, 1)
		require.Equal(t, id.SPIFFE(), leaf.URIs[0].String())
		require.Empty(t, leaf.DNSNames)
		require.False(t, leaf.NotAfter.After(root.NotAfter()))
		require.NoError(t, checkPublicKey(leaf.PublicKey))
	})
}
