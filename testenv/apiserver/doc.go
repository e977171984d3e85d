// Package apiserver runs real Kubernetes API servers for tests, one process
// per cluster, so that a test can kill, restart and pause a cluster as the
// world does.
//
// The program that runs is testenv/kube, a nested module of its own: a
// kube-apiserver with etcd and the few controllers that matter, built once
// from source and kept in the user's cache directory. No Docker, no downloads
// but Go modules.
//
//	func TestSomething(t *testing.T) {
//		apiserver.NeedBinary(t)
//		cluster, err := apiserver.Start(ctx, apiserver.Config{Name: "east"})
//		require.NoError(t, err)
//		defer cluster.Stop()
//		...
//	}
//
// A cluster takes two to three seconds to start and 320 MiB to run: share one
// within a test package and give each test a namespace of its own.
package apiserver
