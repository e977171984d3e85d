package apiserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// stopPatience bounds the wait for a process to stop: the signal arrives at each
// of its threads in that thread's own time.
const stopPatience = 5 * time.Second

// awaitStopped returns when every thread of a process has stopped.
func awaitStopped(pid int) {
	for deadline := time.Now().Add(stopPatience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if stopped(pid) {
			return
		}
	}
}

func stopped(pid int) bool {
	threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
	if err != nil || len(threads) == 0 {
		return true // it has ended
	}
	for _, t := range threads {
		stat, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		// The state follows the name, which is in parentheses.
		i := bytes.LastIndexByte(stat, ')')
		if i < 0 || i+2 >= len(stat) || bytes.IndexByte([]byte("TtZX"), stat[i+2]) < 0 {
			return false
		}
	}
	return true
}
