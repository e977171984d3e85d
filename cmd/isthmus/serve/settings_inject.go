package serve

import (
	"fmt"
	"os"

	"github.com/isthmus-mesh/isthmus/mesh/inject"
)

// Injection are the settings of proxy injection. They come from the
// environment, under istiod's names.
type Injection struct {
	// NativeSidecars (ENABLE_NATIVE_SIDECARS) says whether proxies are init
	// containers that stay: true, false, or where all nodes of a cluster can do
	// it: auto (Kubernetes 1.33, where it is stable), auto-beta (1.29).
	NativeSidecars string
	// Compliance (COMPLIANCE_POLICY) is given to templates.
	Compliance string
	// InitBeforeProxy (INIT_CONTAINERS_BEFORE_PROXY) names init containers that
	// start before a native sidecar, with commas.
	InitBeforeProxy []string
}

func injectionDefaults(getenv func(string) string) Injection {
	return Injection{NativeSidecars: or(getenv("ENABLE_NATIVE_SIDECARS"), nativeAuto), Compliance: getenv("COMPLIANCE_POLICY"),
		InitBeforeProxy: split(getenv("INIT_CONTAINERS_BEFORE_PROXY"))}
}

// Modes of ENABLE_NATIVE_SIDECARS.
const (
	nativeAuto   = "auto"
	nativeStable = "auto-stable"
	nativeBeta   = "auto-beta"
	nativeOn     = "true"
	nativeOff    = "false"
)

func (s *Injection) validate() error {
	switch s.NativeSidecars {
	case nativeAuto, nativeStable, nativeBeta, nativeOn, nativeOff, "":
		return nil
	}
	return fmt.Errorf("ENABLE_NATIVE_SIDECARS=%s: want true, false, auto, auto-stable or auto-beta", s.NativeSidecars)
}

// options are what templates get from this control plane.
func (s *Injection) options(revision string) inject.Options {
	return inject.Options{Revision: revision, Getenv: os.Getenv, Compliance: s.Compliance, InitBeforeProxy: s.InitBeforeProxy}
}
