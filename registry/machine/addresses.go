package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	networking "istio.io/api/networking/v1alpha3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/entry"
)

// addressPause collects changes before addresses are written.
const addressPause = time.Second

// AddressConfig configures an [AddressWriter].
type AddressConfig struct {
	// Client writes to the primary.
	Client dynamic.Interface
	Store  *registry.Store
	Log    *zap.Logger // nothing if nil
}

// AddressWriter writes the virtual IPs that hosts of ServiceEntries were given
// into the status of the entries, where users and other programs find them and
// where they outlive whatever made the host choose them. All replicas may write:
// they give a host the same addresses, and none overwrites what it has not read.
type AddressWriter struct {
	cfg     AddressConfig
	log     *zap.Logger
	entries dynamic.NamespaceableResourceInterface
	// denied: it has been told that writing is not allowed. Only Run looks at it.
	denied bool
}

// NewAddressWriter returns a writer; it does nothing before [AddressWriter.Run].
func NewAddressWriter(c AddressConfig) (*AddressWriter, error) {
	if c.Client == nil || c.Store == nil {
		return nil, errors.New("make writer of addresses: no client or store")
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
	return &AddressWriter{cfg: c, log: c.Log, entries: c.Client.Resource(gvr)}, nil
}

// Run writes until the context ends. Call it once the primary has been read
// completely: before, hosts may be given other addresses than after.
func (w *AddressWriter) Run(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	wake <- struct{}{}
	cancel := w.cfg.Store.OnChange(func(c registry.Change) {
		for k := range c.Objects {
			if k.Kind == mesh.KindServiceEntry {
				select {
				case wake <- struct{}{}:
				default:
				}
				return
			}
		}
	})
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(addressPause):
		}
		if !w.writeAll(ctx) {
			// Not written: again with the next change, or in a while.
			time.AfterFunc(retryMax, func() {
				select {
				case wake <- struct{}{}:
				default:
				}
			})
		}
	}
}

// writeAll writes every entry that lacks addresses and reports whether all went well.
func (w *AddressWriter) writeAll(ctx context.Context) bool {
	cat, ok := w.cfg.Store.Catalog(), true
	for _, o := range cat.Objects(mesh.KindServiceEntry) {
		want := addressesOf(cat, o)
		if len(want) == 0 || o.Status != nil && slices.Equal(o.Status.Addresses, want) {
			continue
		}
		if err := w.write(ctx, o, want); err != nil && ctx.Err() == nil {
			ok = false
			w.log.Warn("addresses are not in the entry's status, trying again", zap.Stringer("object", o.Origin), zap.Error(err))
		}
	}
	return ok
}

// addressesOf lists what the hosts of an entry were given.
func addressesOf(cat *registry.Catalog, o *mesh.Object) []mesh.HostAddress {
	if _, ok := o.Spec.(*networking.ServiceEntry); !ok {
		return nil
	}
	e := entry.ReadEntry(o, "")
	var out []mesh.HostAddress
	for _, h := range e.Hosts {
		svc := cat.Service(mesh.ServiceKey{Namespace: o.Key.Namespace, Hostname: h})
		if svc == nil || !svc.Lead.FromEntry() || !e.Allocates(h) {
			continue
		}
		for _, a := range svc.Lead.AutoAddresses {
			out = append(out, mesh.HostAddress{Host: h, Address: a})
		}
	}
	return out
}

// addressTries bounds how often an entry that others write to in the same moment
// is written.
const addressTries = 3

// readsAs reports whether an entry is as it was read, but for a version that
// somebody gave it who wrote into another part of its status: that is no change
// that will be read.
func readsAs(live *unstructured.Unstructured, o *mesh.Object) bool {
	var have []mesh.HostAddress
	list, _, _ := unstructured.NestedSlice(live.Object, "status", "addresses")
	for _, x := range list {
		m, _ := x.(map[string]any)
		addr, err := netip.ParseAddr(text(m["value"]))
		if err != nil {
			return false
		}
		have = append(have, mesh.HostAddress{Host: mesh.Hostname(text(m["host"])), Address: addr})
	}
	var read []mesh.HostAddress
	if o.Status != nil {
		read = o.Status.Addresses
	}
	return live.GetGeneration() == o.Generation && slices.Equal(have, read)
}

type statusAddress struct {
	Value netip.Addr    `json:"value"`
	Host  mesh.Hostname `json:"host"`
}

func (w *AddressWriter) write(ctx context.Context, o *mesh.Object, list []mesh.HostAddress) error {
	out := make([]statusAddress, len(list))
	for i, a := range list {
		out[i] = statusAddress{a.Address, a.Host}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	api := w.entries.Namespace(o.Key.Namespace)
	version, err := o.Version, error(nil)
	for range addressTries {
		patch, encodeErr := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": version}, "status": map[string]any{"addresses": out}})
		if encodeErr != nil {
			return fmt.Errorf("encode status of %s: %w", o.Origin, encodeErr)
		}
		if _, err = api.Patch(ctx, o.Key.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); !apierrors.IsConflict(err) {
			break
		}
		live, readErr := api.Get(ctx, o.Key.Name, metav1.GetOptions{})
		if readErr != nil || !readsAs(live, o) {
			break
		}
		version = live.GetResourceVersion()
	}
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // it has changed, or is gone: that will be read
	}
	if apierrors.IsForbidden(err) { // hosts have their addresses all the same
		if !w.denied {
			w.log.Warn("addresses of hosts are not written: allow patch on serviceentries/status in the primary", zap.Stringer("object", o.Origin), zap.Error(err))
		}
		w.denied = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of %s: %w", o.Origin, err)
	}
	return nil
}
