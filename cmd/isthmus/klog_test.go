package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// What client-go says by klog, its leader election above all, comes out as lines
// of our log and nowhere else.
func TestKlogIsPartOfOurLog(t *testing.T) {
	var out bytes.Buffer
	log, err := (&logOptions{level: "default:info", json: true}).logger(&out)
	require.NoError(t, err)
	adoptKlog(log)
	t.Cleanup(klog.ClearLogger)

	elect(t)
	klog.ErrorS(errors.New("boom"), "watch ended", "kind", "Secret", "odd")
	klog.Background().WithName("reflector").WithValues("type", "Pod").Info("listed")
	klog.Background().V(5).Info("too much")
	klog.Flush()

	var lines []map[string]any
	for _, text := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		line := map[string]any{}
		require.NoError(t, json.Unmarshal([]byte(text), &line), "not a line of our log: %q", text)
		delete(line, "time")
		lines = append(lines, line)
	}
	require.GreaterOrEqual(t, len(lines), 4, out.String())
	for _, line := range lines {
		require.True(t, strings.HasPrefix(line["scope"].(string), "client-go"), line)
	}
	all := out.String()
	require.Contains(t, all, "leader lease")
	require.NotContains(t, all, "too much")
	tail := lines[len(lines)-2:]
	require.Equal(t, "error", tail[0]["level"])
	require.Equal(t, "watch ended", tail[0]["msg"])
	require.Equal(t, "Secret", tail[0]["kind"])
	require.Equal(t, "boom", tail[0]["error"])
	require.Equal(t, map[string]any{"level": "info", "scope": "client-go.reflector", "msg": "listed", "type": "Pod"}, tail[1])
}

// elect leads once and steps down.
func elect(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: "istio-system", Name: "test"},
			Client:     fake.NewClientset().CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: "istiod-0"},
		},
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: time.Second,
		Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) { cancel() }, OnStoppedLeading: func() {}},
	})
	require.NoError(t, err)
	e.Run(ctx)
}

// The levels of our log count for client-go too.
func TestKlogFollowsOurLevels(t *testing.T) {
	var out bytes.Buffer
	log, err := (&logOptions{level: "default:info,client-go:error"}).logger(&out)
	require.NoError(t, err)
	adoptKlog(log)
	t.Cleanup(klog.ClearLogger)
	klog.Info("hidden")
	klog.Errorf("shown %d", 1)
	klog.Flush()
	require.NotContains(t, out.String(), "hidden")
	require.Contains(t, out.String(), "error  client-go  shown 1")
}

// Only main touches what is one for the whole process.
func TestServeAdoptsKlogOnce(t *testing.T) {
	calls := 0
	e := environment{out: &bytes.Buffer{}, err: &bytes.Buffer{}, getenv: func(string) string { return "" }, adoptKlog: func(*zap.Logger) { calls++ }}
	require.NotZero(t, e.run(t.Context(), []string{"serve", "--files", "/does/not/exist"}))
	require.Equal(t, 1, calls)
	require.NotZero(t, e.run(t.Context(), []string{"status", "--address", "127.0.0.1:1"}))
	require.Equal(t, 1, calls)
}
