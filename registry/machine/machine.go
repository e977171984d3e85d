// Package machine lets machines outside Kubernetes register themselves: a proxy
// that names a WorkloadGroup when it connects gets a WorkloadEntry, which goes
// when the proxy stays away. It also writes down what only the control plane
// knows: the health that agents report, and the virtual IPs of hosts.
//
// It owns the objects that are written and when. It does not know what they mean
// for proxies: they are read back from the API server as if somebody else had
// written them (registry/entry), so that all replicas say the same.
package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Annotations of WorkloadEntries that registered themselves.
const (
	AnnotationGroup        = "istio.io/autoRegistrationGroup"
	AnnotationController   = "istio.io/workloadController"
	AnnotationConnected    = "istio.io/connectedAt"
	AnnotationDisconnected = "istio.io/disconnectedAt"
	annotationHealthChecks = "proxy.istio.io/health-checks-enabled"
)

// MetadataGroup is the key of a proxy's metadata that names its WorkloadGroup.
const MetadataGroup = "AUTO_REGISTER_GROUP"

// Defaults of a [Config].
const (
	DefaultGrace   = 10 * time.Second
	DefaultForsake = 45 * time.Minute
)

const (
	// callTimeout bounds one call to the API server.
	callTimeout = 10 * time.Second
	// retryMin and retryMax bound the wait before a failed call is tried again.
	retryMin, retryMax = time.Second, 30 * time.Second
	// sweepEvery is how often entries are looked for that nobody looks after.
	sweepEvery = 5 * time.Minute
	// maxName is how long the name of an object may be.
	maxName = 253
	// maxSessions bounds how many machines one replica looks after.
	maxSessions = 10000
)

// Config configures a [Registrar].
type Config struct {
	// Client writes to the primary.
	Client dynamic.Interface
	// Catalog tells the WorkloadGroups of the primary.
	Catalog func() *registry.Catalog
	// Instance names this replica among all.
	Instance string
	// Grace is how long an entry stays after its proxy left; [DefaultGrace] if 0.
	Grace time.Duration
	// Forsake is after what time since its proxy connected an entry counts as
	// forsaken by a replica that is gone. It must be longer than any stream lives,
	// or entries of machines that another replica looks after are removed;
	// [DefaultForsake] if 0, never if negative.
	Forsake time.Duration
	Clock   func() time.Time // time.Now if nil
	Log     *zap.Logger      // nothing if nil
}

// Registrar looks after the WorkloadEntries of the machines that are connected
// to this replica. Its methods never wait for the API server: what is to be
// written is written by [Registrar.Run], and again until it succeeds.
type Registrar struct {
	cfg     Config
	log     *zap.Logger
	entries dynamic.NamespaceableResourceInterface
	wake    chan struct{}

	mu       sync.Mutex
	sessions map[mesh.ObjectKey]*session
}

// session is one machine. It is guarded by the Registrar's mutex.
type session struct {
	group   string
	proxy   *mesh.Proxy
	streams int
	since   time.Time // when the newest stream began
	left    time.Time // when the last one ended
	health  *health
	// due is when the next write is to be tried, wait the time after a failure.
	due  time.Time
	wait time.Duration
	// pending: something has to be written.
	pending bool
}

// health is what an agent reported last.
type health struct {
	ok      bool
	message string
	at      time.Time
}

// New returns a registrar; it does nothing before [Registrar.Run].
func New(c Config) (*Registrar, error) {
	if c.Client == nil || c.Catalog == nil || c.Instance == "" {
		return nil, errors.New("make registrar of machines: no client, catalog or name of the replica")
	}
	c.Grace, c.Forsake = cmp.Or(c.Grace, DefaultGrace), cmp.Or(c.Forsake, DefaultForsake)
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
	return &Registrar{cfg: c, log: c.Log, entries: c.Client.Resource(gvr), wake: make(chan struct{}, 1), sessions: map[mesh.ObjectKey]*session{}}, nil
}

// Connect takes note of a proxy whose stream lives as long as the context. A
// proxy that names no group is none of its business. caller is who the proxy
// proved to be, the zero value if nothing was proven: then it cannot register.
// Errors are gRPC statuses that name what to put right.
func (r *Registrar) Connect(ctx context.Context, p *mesh.Proxy, caller mesh.Identity) error {
	name, _ := p.Metadata[MetadataGroup].(string)
	if name == "" {
		return nil
	}
	if _, err := r.admit(p, name, caller); err != nil {
		r.log.Warn("machine cannot register", zap.String("proxy", p.ID), zap.String("group", name), zap.Error(err))
		return err
	}
	k := entryKey(p, name)
	r.mu.Lock()
	s := r.sessions[k]
	if s == nil {
		if len(r.sessions) >= maxSessions {
			r.mu.Unlock()
			return status.Errorf(codes.ResourceExhausted, "register %s: this replica looks after %d machines already", k.Name, maxSessions)
		}
		s = &session{}
		r.sessions[k] = s
	}
	s.group, s.proxy = name, p
	s.streams++
	s.since = r.cfg.Clock()
	s.soon(s.since)
	r.mu.Unlock()
	context.AfterFunc(ctx, func() { r.disconnect(k) })
	r.poke()
	return nil
}

// admit finds the group and tells why a proxy may not be in it.
func (r *Registrar) admit(p *mesh.Proxy, name string, caller mesh.Identity) (*networking.WorkloadGroup, error) {
	o := r.cfg.Catalog().Object(mesh.ObjectKey{Kind: mesh.KindWorkloadGroup, Namespace: p.Namespace, Name: name})
	if o == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "register machine: there is no WorkloadGroup %s/%s", p.Namespace, name)
	}
	group, _ := o.Spec.(*networking.WorkloadGroup)
	account := cmp.Or(group.GetTemplate().GetServiceAccount(), "default")
	switch {
	case caller.IsZero():
		return nil, status.Error(codes.Unauthenticated, "register machine: the proxy has proven no identity; connect over TLS with a credential")
	case caller.Namespace != p.Namespace || caller.ServiceAccount != account:
		return nil, status.Errorf(codes.PermissionDenied, "register machine: machines of WorkloadGroup %s/%s have service account %s, the proxy has proven to be %s",
			p.Namespace, name, account, caller.SPIFFE())
	}
	return group, nil
}

// Health takes note of what the agent of a machine reports. Reports of proxies
// that did not register are ignored.
func (r *Registrar) Health(p *mesh.Proxy, ok bool, message string) {
	name, _ := p.Metadata[MetadataGroup].(string)
	if name == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[entryKey(p, name)]
	if s == nil || s.health != nil && s.health.ok == ok && s.health.message == message {
		return
	}
	s.health = &health{ok: ok, message: message, at: r.cfg.Clock()}
	s.soon(s.health.at)
	r.poke()
}

func (r *Registrar) disconnect(k mesh.ObjectKey) {
	r.mu.Lock()
	if s := r.sessions[k]; s != nil {
		s.streams--
		if s.streams == 0 {
			s.left = r.cfg.Clock()
			s.soon(s.left)
		}
	}
	r.mu.Unlock()
	r.poke()
}

func (s *session) soon(now time.Time) { s.pending, s.due, s.wait = true, now, 0 }

func (r *Registrar) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// entryKey names the entry of a machine: GROUP-ADDRESS, and the network if the
// proxy says which.
func entryKey(p *mesh.Proxy, group string) mesh.ObjectKey {
	parts := []string{group}
	if len(p.Addresses) > 0 {
		parts = append(parts, strings.ReplaceAll(p.Addresses[0].String(), ":", "-"))
	}
	if p.Network != "" {
		parts = append(parts, string(p.Network))
	}
	name := strings.Join(parts, "-")
	if len(name) > maxName {
		name = strings.TrimLeft(name[len(name)-maxName:], "-.")
	}
	return mesh.ObjectKey{Kind: mesh.KindWorkloadEntry, Namespace: p.Namespace, Name: name}
}

// Run writes what is to be written until the context ends. Entries of proxies
// that are connected then stay: they go to another replica.
func (r *Registrar) Run(ctx context.Context) error {
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		k, wait := r.next()
		if k == nil {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-r.wake:
			case <-timer.C:
			case <-sweep.C:
				r.sweep(ctx)
			}
			timer.Stop()
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		r.work(ctx, *k)
	}
}

// next finds a machine whose write is due, or how long to wait for one.
func (r *Registrar) next() (*mesh.ObjectKey, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, wait := r.cfg.Clock(), sweepEvery
	var due []mesh.ObjectKey
	for k, s := range r.sessions {
		switch {
		case !s.pending:
		case !s.due.After(now):
			due = append(due, k)
		default:
			wait = min(wait, s.due.Sub(now))
		}
	}
	if len(due) == 0 {
		return nil, wait
	}
	first := slices.MinFunc(due, func(a, b mesh.ObjectKey) int {
		return cmp.Or(r.sessions[a].due.Compare(r.sessions[b].due), strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name))
	})
	return &first, 0
}

// work writes what one machine needs.
func (r *Registrar) work(ctx context.Context, k mesh.ObjectKey) {
	r.mu.Lock()
	s := *r.sessions[k]
	r.sessions[k].pending = false
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	var again time.Duration
	switch {
	case s.streams > 0:
		err = r.keep(ctx, k, &s)
	case r.cfg.Clock().Sub(s.left) < r.cfg.Grace:
		again, err = r.cfg.Grace-r.cfg.Clock().Sub(s.left), r.depart(ctx, k, &s)
	default:
		err = r.remove(ctx, k)
	}
	r.done(k, &s, again, err)
}

// done notes how a write went.
func (r *Registrar) done(k mesh.ObjectKey, was *session, again time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[k]
	switch {
	case err != nil:
		if !s.pending {
			s.wait = min(max(2*was.wait, retryMin), retryMax)
			s.pending, s.due = true, r.cfg.Clock().Add(s.wait)
		}
		r.log.Warn("entry of a machine is not written, trying again", zap.String("entry", k.Namespace+"/"+k.Name), zap.Error(err))
	case s.pending: // something came up meanwhile
	case again > 0:
		s.pending, s.due = true, r.cfg.Clock().Add(again)
	case s.streams == 0:
		delete(r.sessions, k)
	}
}

func (r *Registrar) wrap(what string, k mesh.ObjectKey, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s WorkloadEntry %s/%s in the primary: %w", what, k.Namespace, k.Name, err)
}
