package dropin

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// patience is how long something may take that must happen. Nothing is asserted
// about time.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(idle{m})
}

// idle closes what the tests' own client left open.
type idle struct{ *testing.M }

func (i idle) Run() int {
	defer http.DefaultClient.CloseIdleConnections()
	return i.M.Run()
}

// world is a primary, east, and a remote, west, as istiod left them.
type world struct {
	t        *testing.T
	ctx      context.Context
	clusters map[string]*apiserver.Cluster
	webhooks string // address that webhook configurations name
	root     string // that istiod signed, PEM
	enforced bool   // istiod had seen that validation works
	binary   string
	// witnesses stand between our accounts and their API servers.
	witnesses map[string]*apiserver.Witness
}

// rights are the rules of the accounts.
type rights struct {
	everywhere, own, reader []rbacv1.PolicyRule
}

// poison is an object that is refused, from before validation.
const poison = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: poison, namespace: default}
spec: {host: web, subsets: [{name: "a|b", labels: {version: v1}}]}
`

// newWorld starts two clusters and puts into them what istiod leaves behind.
func newWorld(t *testing.T, allowed rights, enforced bool) *world {
	t.Helper()
	apiserver.NeedBinary(t)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 8*time.Minute)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, clusters: map[string]*apiserver.Cluster{}, witnesses: map[string]*apiserver.Witness{}, enforced: enforced, webhooks: "localhost:" + freePort(t), binary: filepath.Join(t.TempDir(), "isthmus")}
	built, err := exec.CommandContext(ctx, "go", "build", "-o", w.binary, "../../cmd/isthmus").CombinedOutput()
	require.NoError(t, err, "%s", built)
	names, started, errs := []string{"east", "west"}, make([]*apiserver.Cluster, 2), make([]error, 2)
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			if started[i], errs[i] = apiserver.Start(ctx, apiserver.Config{Name: name}); errs[i] == nil {
				errs[i] = started[i].InstallIstioCRDs(ctx)
			}
		})
	}
	wg.Wait()
	for i, name := range names {
		if c := started[i]; c != nil {
			t.Cleanup(func() { _ = c.Stop() })
			w.clusters[name] = c
		}
	}
	require.NoError(t, errors.Join(errs...))
	for name, c := range w.clusters {
		w.witnesses[name], err = c.Witness()
		require.NoError(t, err)
		t.Cleanup(w.witnesses[name].Close)
	}
	require.NoError(t, w.clusters["east"].Apply(ctx, []byte(poison))) // before anybody validates
	w.leave()
	t.Cleanup(func() {
		if t.Failed() {
			for name := range w.clusters {
				t.Logf("what the API server of %s refused: %v", name, w.refused(name))
			}
		}
	})
	w.allow(w.clusters["east"], "istiod", "istiod-clusterrole-istio-system", true, allowed.everywhere)
	w.allow(w.clusters["east"], "istiod", "istiod-gateway-controller-istio-system", true, gatewayRights())
	w.allow(w.clusters["east"], "istiod", "istiod", false, allowed.own)
	w.allow(w.clusters["west"], multicluster.ReaderAccount, "istio-reader-clusterrole-istio-system", true, allowed.reader)
	return w
}

// freePort is a port that nobody listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// plane is the binary at work.
type plane struct {
	w    *world
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	log   []string
	addrs map[string]string
}

// start starts the binary in istiod's place: the arguments and variables are those
// that the Deployment of Istio's chart gives, and the credentials those of its
// account. Only the addresses differ: several processes share this machine.
func (w *world) start() *plane {
	w.t.Helper()
	dir := w.t.TempDir() // the mounts of the chart are relative to it: none is there
	p := &plane{w: w, done: make(chan struct{}), addrs: map[string]string{}}
	p.cmd = exec.Command(w.binary, "discovery", "--monitoringAddr=127.0.0.1:0", "--log_output_level=default:info", "--domain", "cluster.local",
		"--keepaliveMaxServerConnectionAge", "30m",
		"--grpcAddr=127.0.0.1:0", "--httpAddr=127.0.0.1:0", "--secureGRPCAddr=127.0.0.1:0", "--httpsAddr="+w.webhooks, "--kubernetesApiQPS=200")
	p.cmd.Dir = dir
	p.cmd.Env = []string{
		"REVISION=default", "PILOT_CERT_PROVIDER=istiod", "POD_NAME=istiod-0", "POD_NAMESPACE=" + system, "SERVICE_ACCOUNT=istiod",
		"KUBECONFIG=" + w.writeFile("config", w.as("east", "istiod")), "CA_TRUSTED_NODE_ACCOUNTS=istio-system/ztunnel", "PILOT_TRACE_SAMPLING=1",
		"PILOT_ENABLE_ANALYSIS=false", "CLUSTER_ID=east", "GOMEMLIMIT=2147483648", "GOMAXPROCS=1", "PLATFORM=", "JWT_POLICY=third-party-jwt",
		"ISTIOD_ADDR=istiod.istio-system.svc:15012", "ISTIOD_CUSTOM_HOST=localhost",
	}
	out, in := io.Pipe()
	p.cmd.Stderr, p.cmd.Stdout = in, in
	require.NoError(w.t, p.cmd.Start())
	go p.read(out)
	w.t.Cleanup(func() {
		p.halt()
		_ = in.Close()
		<-p.done
	})
	w.eventually("the binary is ready", func() bool { return p.get("http", "/ready") == http.StatusOK })
	return p
}

// read keeps the log.
func (p *plane) read(from io.Reader) {
	defer close(p.done)
	listens := regexp.MustCompile(`(plaintext ADS|secure ADS and CA|http|monitoring) on (127\.0\.0\.1:\d+)`)
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.mu.Lock()
		p.log = append(p.log, lines.Text())
		if m := listens.FindStringSubmatch(lines.Text()); m != nil {
			p.addrs[m[1]] = m[2]
		}
		p.mu.Unlock()
		if testing.Verbose() {
			p.w.t.Log(lines.Text())
		}
	}
}

// halt ends the process as Kubernetes does.
func (p *plane) halt() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

func (p *plane) addr(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrs[name]
}

// said are the lines of the log with a text.
func (p *plane) said(text string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.log), func(line string) bool { return !strings.Contains(line, text) })
}

// get asks one of the HTTP listeners and returns the code, 0 if nobody answers.
func (p *plane) get(listener, path string) int {
	code, _ := p.fetch(listener, path)
	return code
}

func (p *plane) fetch(listener, path string) (int, []byte) {
	req, err := http.NewRequestWithContext(p.w.ctx, http.MethodGet, "http://"+p.addr(listener)+path, nil)
	if err != nil {
		return 0, nil
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(p.w.t, err)
	return resp.StatusCode, body
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	require.Eventually(w.t, ok, patience, 50*time.Millisecond, what)
}

// refused are the requests of our accounts that an API server has refused.
func (w *world) refused(cluster string) map[string]int { return w.witnesses[cluster].Refused() }
