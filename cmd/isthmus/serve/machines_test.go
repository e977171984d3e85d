package serve

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMachineSettings(t *testing.T) {
	env := map[string]string{}
	read := func() Machines { return Defaults(func(name string) string { return env[name] }).Machines }
	require.Equal(t, Machines{Grace: 10 * time.Second}, read())
	env["PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION"], env["PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS"] = "true", "true"
	env["PILOT_WORKLOAD_ENTRY_GRACE_PERIOD"] = "1m"
	require.Equal(t, Machines{Grace: time.Minute}, read())
	env["PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION"], env["PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS"] = "false", "0"
	require.Equal(t, Machines{Off: true, NoHealth: true, Grace: time.Minute}, read())
}

// The entry of a machine that is connected must outlive every stream.
func TestForsakenOnlyBeyondTheAgeOfConnections(t *testing.T) {
	for _, age := range []time.Duration{time.Minute, 30 * time.Minute, 24 * time.Hour} {
		require.Greater(t, forsaken(age), age+age/10, "gRPC spreads the age by a tenth")
	}
	require.Negative(t, forsaken(0), "no limit")
}
