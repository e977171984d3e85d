package main

import (
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Unix sockets, relative to the data directory: no port to collide on, and no
// path that is too long for a socket address.
const (
	etcdClientURL = "unix://etcd.sock"
	etcdPeerURL   = "unix://etcd-peer.sock"
)

// startEtcd runs a one-member etcd on the data in dir. It does not wait for
// the disk: data survives the death of the process, not that of the machine.
func startEtcd(dir string) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.UnsafeNoFsync = true
	cfg.TickMs, cfg.ElectionMs = 20, 100
	cfg.LogLevel = "error"
	cfg.ListenClientUrls = []url.URL{socketURL(etcdClientURL)}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.ListenPeerUrls = []url.URL{socketURL(etcdPeerURL)}
	// Must be host:port even where there is no second member to dial it.
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)

	db, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	select {
	case <-db.Server.ReadyNotify():
		return db, nil
	case err := <-db.Err():
		db.Close()
		return nil, fmt.Errorf("serve etcd: %w", err)
	case <-timeout.C:
		db.Close()
		return nil, fmt.Errorf("start etcd: no leader after 30 s")
	}
}

// socketURL is one of the constants above as etcd wants it.
func socketURL(raw string) url.URL {
	const scheme = "unix://"
	return url.URL{Scheme: "unix", Host: raw[len(scheme):]}
}
