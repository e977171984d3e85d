package scenario

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/testenv/plane"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// process is the isthmus binary at work on a folder of YAML.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string
	log  io.ReadCloser
	done chan struct{} // its output was read to the end
}

// buildIsthmus builds the binary and returns its path.
func buildIsthmus(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "isthmus")
	built, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/isthmus").CombinedOutput()
	require.NoError(t, err, "%s", built)
	return binary
}

// serveFolder starts the binary and waits until it answers proxies.
func serveFolder(t *testing.T, binary, folder string) *process {
	t.Helper()
	p := &process{t: t, done: make(chan struct{})}
	p.cmd = exec.Command(binary, "serve", "--files", folder, "--primary", "east", "--grpcAddr", "127.0.0.1:0",
		"--httpAddr=", "--monitoringAddr=", "--httpsAddr=", "--secureGRPCAddr=")
	log, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	p.log = log
	require.NoError(t, p.cmd.Start())
	t.Cleanup(p.kill)
	ready := make(chan bool, 1)
	go func() {
		defer close(p.done)
		defer close(ready)
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			line := lines.Text()
			if _, rest, ok := strings.Cut(line, "plaintext ADS on "); ok {
				p.addr = strings.TrimRight(strings.Fields(rest)[0], `"},`)
			}
			if p.addr != "" && strings.Contains(line, "ready") && !strings.Contains(line, "not ready") {
				ready <- true
				break
			}
		}
		_, _ = io.Copy(io.Discard, log) // so that it never waits for its reader
	}()
	require.True(t, <-ready, "isthmus ended before it was ready")
	return p
}

// kill ends the process as the kernel does when memory is short: at once, and
// without a word to anybody.
func (p *process) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have gone by itself, which the test sees
	<-p.done
	_ = p.cmd.Wait()
}

// folderProxy connects a sidecar and waits until it has its whole configuration.
func folderProxy(t *testing.T, to *process, o recorder.Options) *recorder.Proxy {
	t.Helper()
	if o.Check == nil {
		o.Check = validate.Resource
	}
	p, err := recorder.Dial(t.Context(), to.addr, client("east", ""), o)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	ctx, cancel := context.WithTimeout(t.Context(), plane.Patience)
	defer cancel()
	require.NoError(t, p.Ready(ctx))
	return p
}

// haltAt is a check that, at the first assignment with an address, says so and
// waits: the response was received and is not acknowledged.
func haltAt(addr string) (check func(string, *anypb.Any) error, arrived, goOn chan struct{}) {
	arrived, goOn = make(chan struct{}), make(chan struct{})
	var once sync.Once
	return func(typeURL string, body *anypb.Any) error {
		var a endpointv3.ClusterLoadAssignment
		if typeURL == recorder.Assignments && body.UnmarshalTo(&a) == nil && len(a.GetEndpoints()) > 0 &&
			a.GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress() == addr {
			once.Do(func() {
				close(arrived)
				<-goOn
			})
		}
		return validate.Resource(typeURL, body)
	}, arrived, goOn
}

// TestProcessKilledMidPush is row 45 with a real process: SIGKILL while a push
// is on its way and more wait behind it, changes while nobody serves, and a new
// process. Proxies that come back with what they have lose nothing, not for a
// moment, and are sent only what differs.
func TestProcessKilledMidPush(t *testing.T) {
	t.Parallel()
	binary := buildIsthmus(t)
	folder := t.TempDir()
	write := func(name, yaml string) {
		t.Helper()
		path := filepath.Join(folder, "east", name+".yaml")
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path+".tmp", []byte(yaml), 0o600))
		require.NoError(t, os.Rename(path+".tmp", path))
	}
	write("basics", basics("east", ""))
	write("still", Service("still")+Pods("still", true, "10.1.3.1"))
	write("web", Service("web")+Pods("web", true, "10.1.0.1"))
	first := serveFolder(t, binary, folder)

	check, arrived, goOn := haltAt("10.1.0.2")
	delta := folderProxy(t, first, recorder.Options{Delta: true, Check: check})
	sotw := folderProxy(t, first, recorder.Options{})
	hears := func(p *recorder.Proxy, upstream, endpoint string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), plane.Patience)
		defer cancel()
		require.NoError(t, p.Wait(ctx, upstream+" to be "+endpoint, func(p *recorder.Proxy) bool {
			return slices.Equal(p.Endpoints(upstream), []string{endpoint})
		}))
	}
	hears(delta, Upstream("web"), "10.1.0.1:8080 1")
	write("web", Service("web")+Pods("web", true, "10.1.0.2"))
	<-arrived // received and not acknowledged
	write("web", Service("web")+Pods("web", true, "10.1.0.3"))
	write("new", Service("new")+Pods("new", true, "10.1.4.1"))
	hears(sotw, Upstream("new"), "10.1.4.1:8080 1") // so the same waits for the other's answer
	first.kill()
	require.False(t, first.cmd.ProcessState.Exited(), "killed, not ended: %s", first.cmd.ProcessState)
	close(goOn)
	<-delta.Done()
	<-sotw.Done()
	require.Contains(t, delta.Resources(recorder.Upstreams), Upstream("web"), "a proxy keeps what it has")
	write("web", Service("web")+Pods("web", true, "10.1.0.4"))

	second := serveFolder(t, binary, folder)
	again := folderProxy(t, second, recorder.Options{Delta: true, Resume: delta})
	full := folderProxy(t, second, recorder.Options{Resume: sotw})
	for _, p := range []*recorder.Proxy{again, full} {
		hears(p, Upstream("web"), "10.1.0.4:8080 1")
		hears(p, Upstream("new"), "10.1.4.1:8080 1")
		hears(p, Upstream("still"), "10.1.3.1:8080 1")
	}
	for _, push := range again.Pushes() {
		require.Empty(t, push.Removed, "%+v", push)
		for _, known := range []string{Upstream("still"), "PassthroughCluster", "virtualInbound"} {
			require.NotContains(t, push.Names, known, "%+v", push)
		}
	}
	upstreams := 0
	for _, push := range full.Pushes() {
		if push.TypeURL == recorder.Upstreams {
			upstreams++
			require.Subset(t, push.Names, []string{Upstream("web"), Upstream("still"), Upstream("new")}, "the whole state at once")
		}
	}
	require.NotZero(t, upstreams)
}
