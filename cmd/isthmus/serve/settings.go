// Package serve wires the parts of Isthmus into one running control plane: it
// owns the settings of the process, the order in which parts start, the
// listeners and the HTTP surface. It decides nothing about meshes: that is the
// business of the packages it connects.
//
// It is a package of its own, and not part of main, so that scenario tests run
// exactly the wiring that users run.
package serve

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Settings are the flags and environment of the process. Flag and variable
// names are istiod's where istiod has the thing.
type Settings struct {
	// Addresses to listen on; "" switches a listener off, port 0 takes a free port.
	GRPCAddr, SecureGRPCAddr, HTTPAddr, MonitoringAddr, HTTPSAddr string

	// Files is a folder whose sub-folders of YAML are clusters; with it no
	// Kubernetes is needed.
	Files string
	// Primary is the cluster whose configuration counts (--primary, --clusterID, CLUSTER_ID).
	Primary string
	// Aliases maps further names of clusters to IDs (--clusterAliases).
	Aliases map[string]string

	Kubeconfig string
	Namespace  string
	// RemoteNamespace is where remote secrets are looked for, Namespace if empty.
	RemoteNamespace string
	Domain          string
	Revision        string
	// MeshConfig and NetworksConfig are files that take the place of ConfigMap istio.
	MeshConfig, NetworksConfig string

	// SharedMeshConfig is a ConfigMap of the system namespace whose mesh settings
	// lie under those of ConfigMap istio (SHARED_MESH_CONFIG).
	SharedMeshConfig string

	// External: the control plane runs outside of the cluster that --kubeconfig
	// leads to, which holds its configuration (EXTERNAL_ISTIOD).
	External bool
	// LocalSecrets reads remote secrets in the cluster that the control plane runs
	// in, if it is external (LOCAL_CLUSTER_SECRET_WATCHER).
	LocalSecrets bool
	// KubeconfigDir is a directory of kubeconfigs that takes the place of remote secrets.
	KubeconfigDir string
	// InsecureKubeconfig lists what remote kubeconfigs may contain although it is
	// refused by default.
	InsecureKubeconfig string
	// RemoteTimeout is how long readiness waits for a remote cluster.
	RemoteTimeout time.Duration
	// TraceSampling (PILOT_TRACE_SAMPLING, value pilot.traceSampling of Istio's
	// chart) is the share of requests that are traced where nothing else says it.
	TraceSampling *float64
	// APIQPS and APIBurst bound the requests to each API server.
	APIQPS   float32
	APIBurst int

	// DebounceAfter is the quiet period after a change of definitions before it is
	// pushed, DebounceMax the longest delay. Endpoint changes do not wait for it.
	DebounceAfter, DebounceMax time.Duration
	// MaxConnectionAge makes proxies reconnect, so that they spread over replicas.
	MaxConnectionAge time.Duration
	// DrainDuration is how long everything is still served, without being ready,
	// after the process was told to end; 0 = not at all.
	DrainDuration time.Duration
	// ShutdownDuration is how long what is under way may then take to end.
	ShutdownDuration time.Duration

	// PodName identifies this replica in answers to istioctl.
	PodName string

	// NoStatus leaves the status of objects that are not served as written alone
	// (PILOT_ENABLE_STATUS false).
	NoStatus bool

	Security  Security
	Injection Injection
	Machines  Machines
	Gateways  Gateways
}

// istiod's default files for mesh settings; read only if they exist.
const (
	defaultMeshConfig     = "./etc/istio/config/mesh"
	defaultNetworksConfig = "./etc/istio/config/meshNetworks"
)

// Defaults returns the settings that an environment gives before flags are read.
func Defaults(getenv func(string) string) Settings {
	return Settings{
		GRPCAddr: ":15010", SecureGRPCAddr: ":15012", HTTPAddr: ":8080", MonitoringAddr: ":15014", HTTPSAddr: ":15017",
		Primary:            or(getenv("CLUSTER_ID"), "Kubernetes"),
		Namespace:          or(getenv("POD_NAMESPACE"), "istio-system"),
		Domain:             "cluster.local",
		Revision:           getenv("REVISION"),
		Kubeconfig:         getenv("KUBECONFIG"),
		MeshConfig:         defaultMeshConfig,
		NetworksConfig:     defaultNetworksConfig,
		SharedMeshConfig:   getenv("SHARED_MESH_CONFIG"),
		External:           isTrue(getenv("EXTERNAL_ISTIOD")),
		LocalSecrets:       isTrue(getenv("LOCAL_CLUSTER_SECRET_WATCHER")),
		KubeconfigDir:      getenv("PILOT_MULTICLUSTER_KUBECONFIG_PATH"),
		InsecureKubeconfig: getenv("PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS"),
		RemoteTimeout:      duration(getenv("PILOT_REMOTE_CLUSTER_TIMEOUT"), 30*time.Second),
		DebounceAfter:      duration(getenv("PILOT_DEBOUNCE_AFTER"), 10*time.Millisecond),
		DebounceMax:        duration(getenv("PILOT_DEBOUNCE_MAX"), time.Second),
		TraceSampling:      percent(getenv("PILOT_TRACE_SAMPLING")),
		APIQPS:             80,
		APIBurst:           160,
		DrainDuration:      drainDefault(getenv),
		ShutdownDuration:   10 * time.Second,
		PodName:            or(getenv("POD_NAME"), hostname()),
		NoStatus:           isFalse(getenv("PILOT_ENABLE_STATUS")),
		Security:           securityDefaults(getenv),
		Injection:          injectionDefaults(getenv),
		Machines:           machineDefaults(getenv),
		Gateways:           gatewayDefaults(getenv),
	}
}

// Bind adds the flags to a set. The current values are the defaults.
func (s *Settings) Bind(fs *pflag.FlagSet) {
	fs.StringVar(&s.GRPCAddr, "grpcAddr", s.GRPCAddr, "plaintext ADS address (\"\" = off, port 0 = any free port)")
	fs.StringVar(&s.SecureGRPCAddr, "secureGRPCAddr", s.SecureGRPCAddr, "address of ADS and CA over TLS (\"\" = off)")
	fs.StringVar(&s.HTTPAddr, "httpAddr", s.HTTPAddr, "address of /ready and /debug (\"\" = off)")
	fs.StringVar(&s.MonitoringAddr, "monitoringAddr", s.MonitoringAddr, "address of /metrics, /version and /debug (\"\" = off)")
	fs.StringVar(&s.HTTPSAddr, "httpsAddr", s.HTTPSAddr, "address of the webhooks (\"\" = off)")
	fs.StringVar(&s.Files, "files", s.Files, "folder whose sub-folders of YAML are clusters; no Kubernetes is needed then")
	fs.StringVar(&s.Primary, "clusterID", s.Primary, "ID of the primary cluster")
	fs.StringVar(&s.Primary, "primary", s.Primary, "same as --clusterID")
	fs.StringToStringVar(&s.Aliases, "clusterAliases", s.Aliases, "other names of clusters, alias=ID")
	fs.StringVar(&s.Kubeconfig, "kubeconfig", s.Kubeconfig, "kubeconfig of the primary; default: the pod's own credentials, else ~/.kube/config")
	fs.StringVar(&s.Namespace, "namespace", s.Namespace, "system namespace")
	fs.StringVar(&s.RemoteNamespace, "clusterRegistriesNamespace", s.RemoteNamespace, "namespace of the remote secrets; default: --namespace")
	fs.StringVar(&s.Domain, "domain", s.Domain, "cluster domain of DNS names")
	fs.StringVar(&s.Revision, "revision", s.Revision, "revision of this control plane")
	fs.StringVar(&s.MeshConfig, "meshConfig", s.MeshConfig, "file with the mesh configuration; if it does not exist, ConfigMap istio is read")
	fs.StringVar(&s.NetworksConfig, "networksConfig", s.NetworksConfig, "file with the mesh networks; if it does not exist, ConfigMap istio is read")
	fs.StringVar(&s.KubeconfigDir, "kubeconfigDir", s.KubeconfigDir, "directory of kubeconfigs of remote clusters, instead of secrets")
	fs.DurationVar(&s.RemoteTimeout, "remoteTimeout", s.RemoteTimeout, "how long readiness waits for a remote cluster, 0 = without end")
	fs.Float32Var(&s.APIQPS, "kubernetesApiQPS", s.APIQPS, "requests per second to each API server")
	fs.IntVar(&s.APIBurst, "kubernetesApiBurst", s.APIBurst, "burst of requests to each API server")
	fs.DurationVar(&s.DebounceAfter, "debounceAfter", s.DebounceAfter, "quiet time before changed definitions are pushed")
	fs.DurationVar(&s.DebounceMax, "debounceMax", s.DebounceMax, "longest delay of changed definitions")
	fs.DurationVar(&s.MaxConnectionAge, "keepaliveMaxServerConnectionAge", s.MaxConnectionAge, "age at which proxies are asked to reconnect, 0 = never")
	fs.DurationVar(&s.DrainDuration, "terminationDrainDuration", s.DrainDuration, "how long to go on serving, without being ready, when told to end; default: 5s in a pod, else 0")
	fs.DurationVar(&s.ShutdownDuration, "shutdownDuration", s.ShutdownDuration, "time for streams to end at shutdown, after that")
	s.Security.bind(fs)
}

// Validate checks what can be checked without I/O beyond the existence of files.
func (s *Settings) Validate() error {
	if s.Primary == "" {
		return fmt.Errorf("--clusterID is empty: name the primary cluster")
	}
	if s.Namespace == "" {
		return fmt.Errorf("--namespace is empty: name the system namespace, usually istio-system")
	}
	if s.DrainDuration < 0 || s.ShutdownDuration < 0 {
		return fmt.Errorf("--terminationDrainDuration %s, --shutdownDuration %s: give times from 0 on", s.DrainDuration, s.ShutdownDuration)
	}
	if s.Files != "" {
		if st, err := os.Stat(s.Files); err != nil || !st.IsDir() {
			return fmt.Errorf("--files %s: not a folder: give a folder with one sub-folder of YAML per cluster", s.Files)
		}
	}
	if err := s.Injection.validate(); err != nil {
		return err
	}
	return s.Security.validate()
}

// canonical returns the ID that a name of a cluster stands for.
func (s *Settings) canonical(id mesh.ClusterID) mesh.ClusterID {
	if to, ok := s.Aliases[string(id)]; ok {
		return mesh.ClusterID(to)
	}
	return id
}

func (s *Settings) primary() mesh.ClusterID { return mesh.ClusterID(s.Primary) }

func (s *Settings) remoteNamespace() string { return or(s.RemoteNamespace, s.Namespace) }

// meshFiles returns the settings files that exist.
func (s *Settings) meshFiles() (meshFile, networksFile string) {
	return existing(s.MeshConfig), existing(s.NetworksConfig)
}

func existing(path string) string {
	if path == "" {
		return ""
	}
	if _, err := os.Stat(filepath.Clean(path)); err != nil {
		return ""
	}
	return path
}

func or(values ...string) string {
	for _, v := range values {
		if strings.TrimSpace(v) != "" {
			return v
		}
	}
	return ""
}

func duration(s string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(s); err == nil {
		return d
	}
	return otherwise
}

// percent reads a share from 0 to 100, nil for anything else.
func percent(s string) *float64 {
	if p, err := strconv.ParseFloat(s, 64); err == nil && p >= 0 && p <= 100 {
		return &p
	}
	return nil
}

// withEnvironment adds to settings of the mesh what the environment says of it.
func (s *Settings) withEnvironment(m mesh.Settings) mesh.Settings {
	m.TraceSampling = s.TraceSampling
	return m
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "isthmus"
	}
	return h
}
