package load

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// ticksPerSecond is the unit of /proc/PID/stat on Linux (USER_HZ).
const ticksPerSecond = 100

// Usage is what a process has used so far.
type Usage struct {
	CPU time.Duration
	RSS int64 // bytes
}

// usageOf reads /proc; the measurements are for Linux only.
func usageOf(pid int) (Usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of process %d: %w", pid, err)
	}
	// The command name in parentheses may hold spaces: count fields behind it.
	rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(rest) < 22 {
		return Usage{}, fmt.Errorf("read usage of process %d: short stat", pid)
	}
	var sum int64
	for _, i := range []int{11, 12} { // utime, stime
		n, err := strconv.ParseInt(rest[i], 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("read usage of process %d: %w", pid, err)
		}
		sum += n
	}
	pages, err := strconv.ParseInt(rest[21], 10, 64)
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of process %d: %w", pid, err)
	}
	return Usage{CPU: time.Duration(sum) * time.Second / ticksPerSecond, RSS: pages * int64(os.Getpagesize())}, nil
}

// watchPeak samples a process's RSS until the context ends and returns a
// function that reads the highest value seen.
func watchPeak(ctx context.Context, pid int) func() int64 {
	var peak atomic.Int64
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			if u, err := usageOf(pid); err == nil && u.RSS > peak.Load() {
				peak.Store(u.RSS)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return peak.Load
}
