package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

// demo is what has been started, in order.
type demo struct {
	options
	work, isthmus string
	began         time.Time

	clusters []*apiserver.Cluster // the primary first
	server   *server
	proxies  []proxy
}

// proxy is a connected recorder that plays a pod.
type proxy struct {
	*recorder.Proxy
	cluster, id string
	// ref is how explain is asked about it.
	ref string
}

// say tells what goes on and how long after the start.
func (d *demo) say(format string, args ...any) {
	fmt.Printf("%5.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// kubeconfig is the file with which kubectl reaches a cluster as administrator.
func (d *demo) kubeconfig(cluster string) string {
	return filepath.Join(d.work, cluster+".kubeconfig")
}

// end stops what was started, last first.
func (d *demo) end() error {
	for _, p := range d.proxies {
		p.Close()
	}
	var errs []error
	if d.server != nil {
		d.server.stop()
	}
	for _, c := range d.clusters {
		errs = append(errs, c.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(d.work))...)
}

// folders lists the clusters of the world, the primary first.
func (d *demo) folders() ([]string, error) {
	list, err := os.ReadDir(d.world)
	if err != nil {
		return nil, fmt.Errorf("read world: %w", err)
	}
	out := []string{d.primary}
	found := false
	for _, f := range list {
		switch {
		case !f.IsDir():
		case f.Name() == d.primary:
			found = true
		default:
			out = append(out, f.Name())
		}
	}
	if !found {
		return nil, fmt.Errorf("read world: %s has no folder %s; name the primary with -primary", d.world, d.primary)
	}
	return out, nil
}

// startClusters starts one API server per folder and applies its objects.
func (d *demo) startClusters(ctx context.Context) error {
	names, err := d.folders()
	if err != nil {
		return err
	}
	d.say("%d API servers: %s (the first time ever they are built, about five minutes)", len(names), strings.Join(names, ", "))
	d.clusters = make([]*apiserver.Cluster, len(names))
	group, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		group.Go(func() error {
			var err error
			d.clusters[i], err = d.startCluster(ctx, name)
			return err
		})
	}
	err = group.Wait()
	d.clusters = slices.DeleteFunc(d.clusters, func(c *apiserver.Cluster) bool { return c == nil })
	return err
}

func (d *demo) startCluster(ctx context.Context, name string) (*apiserver.Cluster, error) {
	objects, err := d.objects(name)
	if err != nil {
		return nil, err
	}
	c, err := apiserver.Start(ctx, apiserver.Config{Name: name, ServiceCIDR: serviceRange(objects)})
	if err != nil {
		return nil, err
	}
	d.say("%s serves at %s", name, c.URL())
	if err := os.WriteFile(d.kubeconfig(name), c.Kubeconfig(), 0o600); err != nil {
		return c, fmt.Errorf("write kubeconfig of %s: %w", name, err)
	}
	if err := c.InstallIstioCRDs(ctx); err != nil {
		return c, err
	}
	for _, o := range objects {
		if err := c.Apply(ctx, o); err != nil {
			return c, err
		}
	}
	d.say("%s has the objects of %s", name, filepath.Join(d.world, name))
	return c, nil
}

// objects reads the files of a folder, those with namespaces, nodes and
// settings before the others.
func (d *demo) objects(cluster string) ([][]byte, error) {
	var all [][]byte
	for _, pattern := range []string{"*.yaml", "*.yml"} {
		files, err := filepath.Glob(filepath.Join(d.world, cluster, pattern))
		if err != nil {
			return nil, fmt.Errorf("list files of cluster %s: %w", cluster, err)
		}
		for _, f := range files {
			raw, err := os.ReadFile(f)
			if err != nil {
				return nil, fmt.Errorf("read objects of cluster %s: %w", cluster, err)
			}
			all = append(all, raw)
		}
	}
	// Apply puts what others need first, so one document with everything is in order.
	return [][]byte{bytes.Join(all, []byte("\n---\n"))}, nil
}

// serviceRange is the /16 in which the folder's ClusterIPs are; an API server
// refuses others.
func serviceRange(objects [][]byte) string {
	for _, raw := range objects {
		decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096)
		for {
			var svc corev1.Service
			if err := decoder.Decode(&svc); errors.Is(err, io.EOF) {
				break
			} else if err != nil || svc.Kind != "Service" {
				continue
			}
			if ip, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil && ip.Is4() {
				prefix, _ := ip.Prefix(16) // 16 bits of an IPv4 address are always there
				return prefix.String()
			}
		}
	}
	return ""
}

// join lets isthmus make a secret for each remote and applies it in the primary.
func (d *demo) join(ctx context.Context) error {
	primary := d.clusters[0]
	if err := primary.EnsureNamespace(ctx, apiserver.SystemNamespace); err != nil {
		return err
	}
	for _, c := range d.clusters[1:] {
		secret, err := d.tool(ctx, "create-remote-secret", "--kubeconfig", d.kubeconfig(c.Name()), "--name", c.Name())
		if err != nil {
			return err
		}
		if err := primary.Apply(ctx, secret); err != nil {
			return err
		}
		d.say("%s joined: isthmus create-remote-secret --name %s | kubectl apply -f -", c.Name(), c.Name())
	}
	return nil
}

// tool runs a command of isthmus and returns what it prints.
func (d *demo) tool(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, d.isthmus, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run isthmus %s: %w\n%s", strings.Join(args, " "), err, complaint.String())
	}
	return out.Bytes(), nil
}

// connect plays one pod of the service in each cluster.
func (d *demo) connect(ctx context.Context) error {
	for _, c := range d.clusters {
		pods, err := c.Client().CoreV1().Pods("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("list pods in %s: %w", c.Name(), err)
		}
		i := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return p.Labels["app"] == d.from && p.Status.PodIP != "" })
		if i < 0 {
			continue
		}
		pod := pods.Items[i]
		// Without a network: it is the control plane that knows it.
		n := recorder.Node{Name: pod.Name, Namespace: pod.Namespace, Cluster: c.Name(), IP: pod.Status.PodIP, Labels: pod.Labels,
			Metadata: map[string]any{"NETWORK": nil, "SERVICE_ACCOUNT": pod.Spec.ServiceAccountName}}
		r, err := recorder.Dial(context.WithoutCancel(ctx), d.server.ads, n, recorder.Options{})
		if err != nil {
			return fmt.Errorf("connect proxy of %s: %w", c.Name(), err)
		}
		id := pod.Name + "." + pod.Namespace
		d.proxies = append(d.proxies, proxy{Proxy: r, cluster: c.Name(), id: id, ref: c.Name() + "/" + id})
	}
	if len(d.proxies) == 0 {
		return fmt.Errorf("find pods with label app=%s: no cluster has one; name another with -from", d.from)
	}
	for _, p := range d.proxies {
		if err := p.Ready(ctx); err != nil {
			return fmt.Errorf("configure proxy %s of %s: %w", p.id, p.cluster, err)
		}
	}
	d.say("%d proxies connected, one per cluster", len(d.proxies))
	return nil
}

// show prints the status and what each proxy hears, as isthmus tells it.
func (d *demo) show(ctx context.Context) error {
	address := "http://" + d.server.http
	out, err := d.tool(ctx, "status", "--address", address)
	if err != nil {
		return err
	}
	fmt.Printf("\n$ isthmus status\n%s", out)
	for _, p := range d.proxies {
		for host := range strings.SplitSeq(d.hosts, ",") {
			out, err := d.tool(ctx, "explain", "--address", address, p.ref, host)
			if err != nil {
				return err
			}
			fmt.Printf("\n$ isthmus explain %s %s\n%s", p.ref, host, out)
		}
	}
	return nil
}
