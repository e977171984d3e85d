package serve

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/machine"
	"github.com/isthmus-mesh/isthmus/xds"
)

// machines writes to the primary what the control plane alone knows: machines
// that register themselves, their health, the addresses of hosts. nil without
// Kubernetes: then there is nobody to write to.
type machines struct {
	registrar *machine.Registrar // nil if machines may not register
	addresses *machine.AddressWriter
}

func (c *Control) newMachines() (*machines, error) {
	if c.kube == nil {
		return nil, nil
	}
	client, err := dynamic.NewForConfig(c.kube.rest)
	if err != nil {
		return nil, fmt.Errorf("make client of the primary cluster: %w", err)
	}
	host, _ := os.Hostname() // which a pod is called by, too
	m := &machines{}
	log := c.log.Named("machines")
	if !c.settings.Machines.Off {
		m.registrar, err = machine.New(machine.Config{Client: client, Catalog: c.store.Catalog, Instance: cmp.Or(c.settings.PodName, host, "isthmus"),
			Grace: c.settings.Machines.Grace, Forsake: forsaken(c.settings.MaxConnectionAge), Log: log})
	}
	if err != nil {
		return nil, err
	}
	m.addresses, err = machine.NewAddressWriter(machine.AddressConfig{Client: client, Store: c.store, Log: log})
	return m, err
}

// forsaken is after what time without news the entry of a connected machine may
// be taken for left behind: no stream lives that long. Without a limit on the age
// of connections there is no such time.
func forsaken(age time.Duration) time.Duration {
	if age <= 0 {
		return -1
	}
	return age + age/2
}

// machineParts run the writers, from when the mesh has been read.
func (c *Control) machineParts() []part {
	if c.machines == nil {
		return nil
	}
	parts := []part{{"addresses of hosts", c.onceReady(c.machines.addresses.Run)}}
	if r := c.machines.registrar; r != nil {
		parts = append(parts, part{"machines", c.onceReady(r.Run)})
	}
	return parts
}

// onceReady runs something when the mesh has been read once.
func (c *Control) onceReady(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-c.ready:
			return run(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// admit decides about a proxy's first request: who it is, and whether it is a
// machine that may register itself.
func (c *Control) admit(ctx context.Context, p *mesh.Proxy) (xds.Credential, error) {
	credential, err := c.access.admit(ctx, p)
	if err != nil || c.machines == nil || c.machines.registrar == nil {
		return credential, err
	}
	caller, _ := credential.Caller.(authn.Caller)
	if err := c.machines.registrar.Connect(ctx, p, caller.Identity); err != nil {
		return xds.Credential{}, err
	}
	return credential, nil
}

// reports takes what proxies report of themselves.
func (c *Control) reports() map[string]func(*mesh.Proxy, xds.Report) {
	return map[string]func(*mesh.Proxy, xds.Report){
		xds.TypeHealth: func(p *mesh.Proxy, r xds.Report) {
			if c.machines != nil && c.machines.registrar != nil && !c.settings.Machines.NoHealth {
				c.machines.registrar.Health(p, !r.Failed, r.Message)
			}
		},
	}
}
