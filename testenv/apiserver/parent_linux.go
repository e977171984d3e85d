package apiserver

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the system kill the process when this one dies, however
// it dies, and keeps it out of the terminal's foreground group, so that
// Ctrl-C is ours to handle. To the system the parent is a thread: a goroutine
// that ends while locked to its thread can take a process along.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
