package serve

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/registry/config"
)

// TestTraceSampling: Istio's chart says in a variable what is sampled; it
// survives new settings of the mesh.
func TestTraceSampling(t *testing.T) {
	hundred, none := 100.0, 0.0
	for text, want := range map[string]*float64{"100": &hundred, "0": &none, "": nil, "101": nil, "-1": nil, "NaN": nil, "all": nil} {
		s := Defaults(func(name string) string {
			if name == "PILOT_TRACE_SAMPLING" {
				return text
			}
			return ""
		})
		require.Equal(t, want, s.TraceSampling, text)
		require.Equal(t, want, s.withEnvironment(config.Defaults()).TraceSampling, text)
	}
}

// TestNoStatus: authors are told at their objects unless istiod's variable says no.
func TestNoStatus(t *testing.T) {
	for value, off := range map[string]bool{"": false, "true": false, "false": true, "odd": false} {
		require.Equal(t, off, Defaults(func(name string) string {
			if name == "PILOT_ENABLE_STATUS" {
				return value
			}
			return ""
		}).NoStatus, value)
	}
}
