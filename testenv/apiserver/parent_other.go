//go:build !linux

package apiserver

import "os/exec"

// dieWithParent does nothing here: only Linux has a signal for a parent's
// death. Stop each cluster; a panic of the test binary can leave one behind.
func dieWithParent(*exec.Cmd) {}
