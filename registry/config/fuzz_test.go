package config

import (
	"encoding/json"
	"testing"
)

// fuzzKind feeds specifications of one kind. The seeds are those of
// testdata/objects.
//
// Nothing panics; errors name what is wrong and stay small; what is accepted is
// accepted again as we would write it and means the same; and a review never
// accepts what would then be quarantined.
func fuzzKind(f *testing.F, name string) {
	k := kindNamed(f, name)
	specs := specsOf(f, name)
	for _, s := range sortedKeys(specs) {
		b, err := json.Marshal(specs[s])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, spec []byte) {
		if !json.Valid(spec) {
			return // what is no JSON at all is the business of FuzzDecode
		}
		doc := objectJSON(t, k, json.RawMessage(spec))
		o, err := Decode("east", k, doc)
		warnings, reviewErr := Review("east", k, doc)
		if err != nil {
			if reviewErr == nil {
				t.Fatalf("a review accepts what is refused: %v", err)
			}
			if len(FieldErrors(err)) == 0 || len(FieldErrors(err)) > maxErrors || len(err.Error()) > 64<<10+4*len(doc) {
				t.Fatalf("%d faults, %d bytes: %v", len(FieldErrors(err)), len(err.Error()), err)
			}
			return
		}
		if len(warnings) > maxErrors {
			t.Fatalf("%d warnings", len(warnings))
		}
		requireRoundTrip(t, k, o)
	})
}

func FuzzAuthorizationPolicy(f *testing.F)   { fuzzKind(f, "AuthorizationPolicy") }
func FuzzDestinationRule(f *testing.F)       { fuzzKind(f, "DestinationRule") }
func FuzzEnvoyFilter(f *testing.F)           { fuzzKind(f, "EnvoyFilter") }
func FuzzGateway(f *testing.F)               { fuzzKind(f, "Gateway") }
func FuzzPeerAuthentication(f *testing.F)    { fuzzKind(f, "PeerAuthentication") }
func FuzzProxyConfig(f *testing.F)           { fuzzKind(f, "ProxyConfig") }
func FuzzRequestAuthentication(f *testing.F) { fuzzKind(f, "RequestAuthentication") }
func FuzzServiceEntry(f *testing.F)          { fuzzKind(f, "ServiceEntry") }
func FuzzSidecar(f *testing.F)               { fuzzKind(f, "Sidecar") }
func FuzzTelemetry(f *testing.F)             { fuzzKind(f, "Telemetry") }
func FuzzVirtualService(f *testing.F)        { fuzzKind(f, "VirtualService") }
func FuzzWasmPlugin(f *testing.F)            { fuzzKind(f, "WasmPlugin") }
func FuzzWorkloadEntry(f *testing.F)         { fuzzKind(f, "WorkloadEntry") }
func FuzzWorkloadGroup(f *testing.F)         { fuzzKind(f, "WorkloadGroup") }
