package join

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// What join writes beside the objects of the chart.
const (
	// JoinedLabel on a remote secret names the cluster that join made it for.
	JoinedLabel = "isthmus.io/joined"
	// MadeAnnotation on a system namespace says that join made it, and for which name.
	MadeAnnotation = "isthmus.io/made-by-join"
	// UIDAnnotation on a remote secret identifies the cluster, whatever its name.
	UIDAnnotation = "isthmus.io/cluster-uid"

	controlPlaneAnnotation = "topology.istio.io/controlPlaneClusters"
	networkLabel           = "topology.istio.io/network"
	// fieldManager is under whose name system namespaces are written.
	fieldManager = "isthmus-join"
)

// DefaultLifetime is that of tokens: long enough for a control plane that is
// away over a holiday, which renews them at half of it.
const DefaultLifetime = 14 * 24 * time.Hour

// minLifetime is the least that API servers issue.
const minLifetime = 10 * time.Minute

// Options say which cluster joins which, and how.
type Options struct {
	// Name is the remote's ID in the mesh, a DNS-1123 label.
	Name string
	// Primary and Remote are reached as somebody who may do what join does. Leave
	// takes a nil Remote for a cluster that does not exist any more.
	Primary, Remote *install.Target
	// PrimaryName is the primary's ID; "" is what its control plane says.
	PrimaryName string
	// Values go over those of the remote's chart: network, address of the primary
	// and all others.
	Values map[string]any
	// Namespace is the system namespace, istio-system if "". Revision is that of the
	// primary's control plane. Version is that of this build, "" is the chart's.
	Namespace, Revision, Version string
	// Server is the URL under which the primary reaches the remote's API server,
	// that of Remote if "". CAData verifies it, the cluster's own authority if nil.
	Server string
	CAData []byte
	// ReadOnly joins a cluster whose proxies do not reach the primary: it is read,
	// and that is all.
	ReadOnly bool
	// TokenLifetime is that of tokens, DefaultLifetime if 0. LongLived makes one
	// without an end instead.
	TokenLifetime time.Duration
	LongLived     bool
	// Weight is how much of its share of the traffic the cluster gets, in percent;
	// nil leaves it as it is, which is all of it for a new one.
	Weight *uint32
	// Allow is what the primary's control plane allows in kubeconfigs.
	Allow multicluster.Options

	// Out hears of every step.
	Out io.Writer
	// DryRun changes nothing. Force takes over what is somebody else's. NoWait
	// returns before the primary has read the remote.
	DryRun, Force, NoWait bool
	// Timeout bounds each wait, five minutes if 0; Poll is the time between looks,
	// a second if 0. Now is the clock, the system's if nil.
	Timeout, Poll time.Duration
	Now           func() time.Time
}

// both is a joining or leaving under way.
type both struct {
	Options
	primary, remote *install.Installer // remote is nil for a cluster that is gone
	release         string
	// Found out on the way.
	uid       string // of the remote
	primaryID string
}

func start(o Options) (*both, error) {
	if o.Primary == nil {
		return nil, errors.New("the primary is missing")
	}
	if wrong := validation.IsDNS1123Label(o.Name); len(wrong) > 0 {
		return nil, fmt.Errorf("cluster name %q is not a DNS-1123 label: %s", o.Name, strings.Join(wrong, "; "))
	}
	o.Namespace = cmp.Or(o.Namespace, manifests.DefaultNamespace)
	o.TokenLifetime = cmp.Or(o.TokenLifetime, DefaultLifetime)
	if o.TokenLifetime < minLifetime {
		return nil, fmt.Errorf("token lifetime %s: API servers issue tokens of at least %s", o.TokenLifetime, minLifetime)
	}
	if o.Weight != nil && *o.Weight > mesh.FullWeight {
		return nil, fmt.Errorf("weight %d is not a percentage from 0 to 100", *o.Weight)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	b := &both{Options: o, release: install.ReleaseName(manifests.Remote, o.Revision)}
	width := len(o.Primary.Name)
	if o.Remote != nil {
		width = max(width, len(o.Remote.Name))
	}
	var once sync.Mutex
	of := func(t *install.Target) *install.Installer {
		i := &install.Installer{Target: t, DryRun: o.DryRun, Force: o.Force, Timeout: o.Timeout, Poll: o.Poll, Now: o.Now}
		if o.Out != nil {
			i.Out = &prefixed{to: o.Out, prefix: fmt.Sprintf("%-*s  ", width, t.Name), mu: &once}
		}
		return i
	}
	b.primary = of(o.Primary)
	if o.Remote != nil {
		b.remote = of(o.Remote)
	}
	return b, nil
}

// prefixed writes lines with the cluster they are about before them.
type prefixed struct {
	to     io.Writer
	prefix string
	mu     *sync.Mutex
}

// Write takes whole lines.
func (p *prefixed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for line := range bytes.Lines(b) {
		if _, err := fmt.Fprintf(p.to, "%s%s", p.prefix, line); err != nil {
			return 0, fmt.Errorf("tell of progress: %w", err)
		}
	}
	return len(b), nil
}

// secretName is the name of the remote secret.
func (b *both) secretName() string { return multicluster.SecretPrefix + b.Name }

// plan is what is installed in the remote.
func (b *both) plan() install.Plan {
	values := manifests.Merge(map[string]any{}, b.Values)
	for at, v := range map[string]string{"global.multiCluster.clusterName": b.Name, "global.istioNamespace": b.Namespace, "revision": b.Revision} {
		manifests.Set(values, at, v)
	}
	return install.Plan{SkipCRDs: true, Installations: []install.Installation{{Chart: manifests.Remote, Release: b.release,
		Namespace: b.Namespace, Revision: cmp.Or(b.Revision, "default"), Values: values, Version: b.Version}}}
}

// value reads one value of the remote's chart.
func (b *both) value(at string) string { return manifests.Text(b.Values, at) }

// account is whom the primary reads the remote as.
func (b *both) account() string {
	return cmp.Or(b.value("reader.serviceAccount"), multicluster.ReaderAccount)
}

// tokenSecretName is the name of the Secret of a token without an end, as
// create-remote-secret calls it.
func (b *both) tokenSecretName() string { return b.account() + "-istio-remote-secret-token" }
