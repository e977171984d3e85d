package serve

import (
	"strconv"
	"time"

	"github.com/isthmus-mesh/isthmus/registry/machine"
)

// Machines are the settings of machines that register themselves. They come from
// the environment, under istiod's names.
type Machines struct {
	// Off lets nobody register (PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION false).
	Off bool
	// NoHealth ignores what agents report (PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS false).
	NoHealth bool
	// Grace is how long an entry stays after its machine left
	// (PILOT_WORKLOAD_ENTRY_GRACE_PERIOD).
	Grace time.Duration
}

func machineDefaults(getenv func(string) string) Machines {
	return Machines{
		Off:      isFalse(getenv("PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION")),
		NoHealth: isFalse(getenv("PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS")),
		Grace:    duration(getenv("PILOT_WORKLOAD_ENTRY_GRACE_PERIOD"), machine.DefaultGrace),
	}
}

// isFalse reads a boolean variable that is true unless it says otherwise.
func isFalse(s string) bool {
	v, err := strconv.ParseBool(s)
	return err == nil && !v
}
