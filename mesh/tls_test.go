package mesh

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKnownToProxies(t *testing.T) {
	require.Equal(t, []string{"AES128-SHA", "-ALL", "ALL"}, KnownCipherSuites([]string{"AES128-SHA", "TLS_AES_128_GCM_SHA256", "-ALL", "AES128-SHA", "ALL", "x"}))
	require.Equal(t, []string{"P-256", "X25519"}, KnownCurves([]string{"P-256", "P-512", "X25519", "P-256"}))
	require.Nil(t, KnownCipherSuites(nil))
}
