package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What cannot be meant is refused before any cluster is asked.
func TestJoinCommandLine(t *testing.T) {
	const nowhere = "/no/such/kubeconfig"
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"join"}, exitUsage, "needs the name of the cluster"},
		{[]string{"leave"}, exitUsage, "needs the name of the cluster"},
		{[]string{"join", "west", "--kubeconfig", nowhere, "--context", "west"}, exitFailed, "the primary: find the cluster"},
		{[]string{"join", "west", "--kubeconfig", "testdata/join/kubeconfig"}, exitUsage, "name it with --context or --remote-kubeconfig"},
		{[]string{"leave", "west", "--kubeconfig", "testdata/join/kubeconfig"}, exitUsage, "name it with --context or --remote-kubeconfig"},
		{[]string{"join", "west", "--kubeconfig", "testdata/join/kubeconfig", "--context", "nowhere"}, exitFailed, "the remote: find the cluster"},
		{[]string{"join", "West_1", "--kubeconfig", "testdata/join/kubeconfig", "--context", "west"}, exitFailed, "is not a DNS-1123 label"},
		{[]string{"join", "west", "--kubeconfig", "testdata/join/kubeconfig", "--context", "west", "--token-duration", "1m"}, exitFailed, "at least 10m"},
		{[]string{"join", "west", "--kubeconfig", "testdata/join/kubeconfig", "--context", "west", "--set", "x"}, exitFailed, "--set x"},
		{[]string{"join", "west", "--kubeconfig", "testdata/join/kubeconfig", "--context", "west", "--certificate-authority", nowhere}, exitFailed, "--certificate-authority"},
		{[]string{"join", "west", "--kubeconfig", "testdata/join/kubeconfig", "--context", "west", "--weight", "101"}, exitFailed, "weight 101 is not a percentage"},
	} {
		r := runCommand(t.Context(), c.args...)
		require.Equal(t, c.code, r.code, "%v: %s", c.args, r.err)
		require.Contains(t, r.err, c.says, "%v", c.args)
	}
}
