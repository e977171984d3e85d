package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/client"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

const (
	// demoStart bounds the time until every proxy has its first answers.
	demoStart = 30 * time.Second
	// demoSettle is how long answers must rest before a change is printed: one
	// edit of a file reaches the proxies in a few pushes.
	demoSettle = 120 * time.Millisecond
	// demoLook is how often problems are looked for, which proxies do not hear of.
	demoLook = 500 * time.Millisecond
)

// demoFlags are the flags of the demo.
type demoFlags struct {
	settings serve.Settings
	logs     logOptions
	from     string
	hosts    []string
	once     bool
}

func (e environment) demoCommand() *cobra.Command {
	f := demoFlags{settings: serve.Defaults(func(string) string { return "" })}
	s := &f.settings
	s.Files, s.Primary = "manifests/demo", "north"
	s.GRPCAddr, s.HTTPAddr, s.MonitoringAddr, s.SecureGRPCAddr, s.HTTPSAddr = "127.0.0.1:0", "127.0.0.1:0", "", "", ""
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a world of YAML folders and show what proxies hear",
		Long: `Run a control plane on folders of YAML, without Kubernetes. For one proxy of each cluster a
real ADS stream is opened to it, and what the proxy is told is printed with the reasons. Then
edit the YAML: whatever changes for a proxy is printed as you save, and shown on the page.`,
		Example: `  isthmus demo --files manifests/demo --primary north

  # with a world of your own: what do the proxies of frontend hear about cart and users?
  isthmus demo --files my-world --primary east --from frontend --hosts cart,users`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return e.demo(cmd.Context(), f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&s.Files, "files", s.Files, "folder whose sub-folders of YAML are clusters")
	fs.StringVar(&s.Primary, "primary", s.Primary, "the cluster whose configuration counts")
	fs.StringVar(&s.GRPCAddr, "grpcAddr", s.GRPCAddr, "plaintext ADS address (port 0 = any free port)")
	fs.StringVar(&s.HTTPAddr, "httpAddr", s.HTTPAddr, "address of the page and /debug (port 0 = any free port)")
	fs.StringVar(&s.Domain, "domain", s.Domain, "cluster domain of DNS names")
	fs.StringVar(&f.from, "from", "web", "service whose pods are the proxies, one in each cluster")
	fs.StringSliceVar(&f.hosts, "hosts", []string{"checkout", "catalog", "billing", "legacy"}, "services to show the answers for")
	fs.BoolVar(&f.once, "once", false, "print the first answers and exit")
	f.logs.bind(fs, "error")
	return cmd
}

// demo is a running demo.
type demo struct {
	demoFlags
	e       environment
	control *serve.Control
	client  *client.Client
	conn    *grpc.ClientConn
	screen  *screen
	proxies []*demoProxy
	wake    chan struct{} // holds one signal that a proxy heard something
	since   time.Time
}

func (e environment) demo(ctx context.Context, f demoFlags) error {
	if f.settings.GRPCAddr == "" || f.settings.HTTPAddr == "" {
		return usageError{errors.New("the demo needs --grpcAddr and --httpAddr; leave them out for any free port")}
	}
	log, err := f.logs.logger(e.err)
	if err != nil {
		return err
	}
	d := &demo{demoFlags: f, e: e, screen: newScreen(e.out, e.getenv), wake: make(chan struct{}, 1), since: time.Now()}
	if d.control, err = serve.New(f.settings, e.build, log); err != nil {
		return err
	}
	if err := d.control.Listen(); err != nil {
		return fmt.Errorf("%w; leave out --grpcAddr and --httpAddr for any free port", err)
	}
	if d.client, err = client.New(reachable(d.control.HTTPAddr())); err != nil {
		return err
	}
	defer d.client.Close()
	if d.conn, err = grpc.NewClient(reachable(d.control.GRPCAddr()), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return fmt.Errorf("dial own ADS address: %w", err)
	}
	defer func() { _ = d.conn.Close() }() // it is ours on both ends
	return d.run(ctx)
}

// errDone ends the group when the demo has shown what it was asked for.
var errDone = errors.New("done")

// run serves and shows until the context ends, or, with --once, until the first
// answers are printed.
func (d *demo) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := d.control.Run(ctx); err != nil {
			return err
		}
		return errDone
	})
	group.Go(func() error {
		if err := d.begin(ctx, group); err != nil || d.once {
			return cmp.Or(err, errDone)
		}
		return cmp.Or(d.follow(ctx, group), errDone)
	})
	err := group.Wait()
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

// begin waits until the world has been read, opens the streams and prints the
// first answers.
func (d *demo) begin(ctx context.Context, group *errgroup.Group) error {
	first, cancel := context.WithTimeout(ctx, demoStart)
	defer cancel()
	if err := d.client.WaitReady(first); err != nil {
		return fmt.Errorf("wait for clusters to be read: %w", err)
	}
	d.open(ctx, group)
	if len(d.proxies) == 0 {
		return fmt.Errorf("find pods of service %s: no cluster in %s has one; name another service with --from", d.from, d.settings.Files)
	}
	for !d.complete() {
		select {
		case <-d.wake:
		case <-first.Done():
			return fmt.Errorf("wait for the proxies' first answers: %w", first.Err())
		}
	}
	if err := d.welcome(); err != nil {
		return err
	}
	if err := d.show(first); err != nil {
		return err
	}
	return d.hint()
}

// open opens a stream for every cluster that has a pod to play and no proxy yet.
func (d *demo) open(ctx context.Context, group *errgroup.Group) {
	for _, w := range d.pods() {
		if slices.ContainsFunc(d.proxies, func(p *demoProxy) bool { return p.workload.Cluster == w.Cluster }) {
			continue
		}
		p := newDemoProxy(w, d.signal)
		d.proxies = append(d.proxies, p)
		group.Go(func() error {
			if err := p.run(ctx, d.conn); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
}

// pods finds one pod of the service to play in each cluster, the primary first.
func (d *demo) pods() []*mesh.Workload {
	store := d.control.Store()
	found := map[mesh.ClusterID]*mesh.Workload{}
	for _, svc := range store.Catalog().SortedServices() {
		if svc.Lead.Name != d.from {
			continue
		}
		for e := range store.Endpoints(svc.Key).All() {
			if w := e.Workload; w.Name != "" && len(w.Addresses) > 0 && found[w.Cluster] == nil {
				found[w.Cluster] = w
			}
		}
	}
	var out []*mesh.Workload
	for _, c := range store.Catalog().Clusters() {
		if w := found[c.ID]; w != nil {
			out = append(out, w)
		}
	}
	return out
}

// signal notes that a proxy heard something.
func (d *demo) signal() {
	select {
	case d.wake <- struct{}{}:
	default: // a signal is waiting already
	}
}

func (d *demo) complete() bool {
	return !slices.ContainsFunc(d.proxies, func(p *demoProxy) bool { return !p.complete() })
}

// show prints the answers of now as far as they differ from those printed last.
func (d *demo) show(ctx context.Context) error {
	var list []answer
	catalog := d.control.Store().Catalog()
	services := catalog.SortedServices()
	now := d.control.Overview()
	for _, p := range d.proxies {
		connection, err := client.FindProxy(now, p.ref())
		if err != nil {
			return err
		}
		for _, name := range d.hosts {
			for _, svc := range services {
				if svc.Lead.Name != name && string(svc.Key.Hostname) != name {
					continue
				}
				for _, port := range svc.Ports {
					a, err := answerFor(ctx, d.client, p, connection, svc.Key.Hostname, port.Number, catalog.WeightScale())
					if err != nil {
						return err
					}
					list = append(list, a)
				}
			}
		}
	}
	return d.screen.show(time.Now(), append(list, troubles(now.Registry)...))
}

// troubles are what proxies do not hear of: objects that are not served as
// written, and clusters that disagree.
func troubles(o registry.Overview) []answer {
	out := answer{proxy: "the mesh", title: "needs attention"}
	for _, p := range o.Problems {
		out.lines = append(out.lines, fmt.Sprintf("✕ %s: %s", p.Object, strings.TrimSpace(p.Field+" "+p.Message)))
	}
	for _, c := range o.Conflicts {
		out.lines = append(out.lines, fmt.Sprintf("✕ clusters disagree about %s: %s: %s", c.Service.Hostname, c.Field, c.Detail))
	}
	if len(out.lines) == 0 {
		return nil
	}
	return []answer{out}
}

// follow prints what changes until the context ends.
func (d *demo) follow(ctx context.Context, group *errgroup.Group) error {
	look := time.NewTicker(demoLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
			if !rest(ctx, demoSettle) {
				return nil
			}
		case <-look.C:
			d.open(ctx, group)
		}
		if !d.complete() {
			continue // an answer is on its way: it wakes us
		}
		if err := d.show(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// rest waits and reports whether the context still runs.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (d *demo) welcome() error {
	o := d.control.Overview()
	return d.e.print(fmt.Sprintf("%s and %s read from %s, %s connected, after %d ms\n"+
		"page  %s\nADS   %s (plaintext)\n\nWhat each proxy is told, and why:\n",
		count(len(o.Clusters), "cluster", "clusters"), count(len(o.Registry.Services), "service", "services"), d.settings.Files,
		count(len(d.proxies), "proxy", "proxies"), time.Since(d.since).Milliseconds(),
		d.screen.paint(bold, "http://"+reachable(d.control.HTTPAddr())+"/debug/"), reachable(d.control.GRPCAddr())))
}

// reachable is an address to dial for one that is listened on: who listens on all
// addresses of the machine is found at the local one.
func reachable(addr string) string {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || !a.Addr().IsUnspecified() {
		return addr
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port()).String()
}

func (d *demo) hint() error {
	if d.once {
		return nil
	}
	return d.e.print(fmt.Sprintf(`
Now edit a file below %[1]s and save it: what changes for a proxy is printed here.
%[2]sAsk yourself: isthmus explain --address http://%[3]s %[4]s %[5]s
End with Ctrl-C.
`, d.settings.Files, d.ideas(), reachable(d.control.HTTPAddr()), d.proxies[0].ref(), d.hosts[0]))
}

// ideas names the file that tells what to try, if the world has one.
func (d *demo) ideas() string {
	readme := filepath.Join(d.settings.Files, "README.md")
	if _, err := os.Stat(readme); err != nil {
		return ""
	}
	ideas := "Things to try are in " + readme
	if _, err := os.Stat(filepath.Join(d.settings.Files, "island", "shop.yaml")); err == nil {
		ideas += ", for example: delete a checkout pod in " + filepath.Join(d.settings.Files, "island", "shop.yaml")
	}
	return ideas + ".\n"
}
