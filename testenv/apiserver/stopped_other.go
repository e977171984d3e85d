//go:build !linux

package apiserver

// awaitStopped does nothing where a thread's state cannot be read.
func awaitStopped(int) {}
