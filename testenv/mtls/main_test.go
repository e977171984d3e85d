package mtls

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long a condition may take to come true on a busy machine.
const patience = 30 * time.Second

// sniVariable makes gRPC send the server name that it is told by xDS, without
// which nothing passes a gateway.
const sniVariable = "GRPC_EXPERIMENTAL_XDS_SNI"

// TestMain starts the test binary again with the variable set: gRPC reads it
// when it is initialised, which is before any code of ours runs.
func TestMain(m *testing.M) {
	if os.Getenv(sniVariable) != "true" {
		self, err := os.Executable()
		if err == nil {
			err = syscall.Exec(self, os.Args, append(os.Environ(), sniVariable+"=true"))
		}
		fmt.Fprintf(os.Stderr, "start tests again with %s=true: %v\n", sniVariable, err)
		os.Exit(1)
	}
	// gRPC leaves one watch of the files of its TLS channel to the ADS server behind
	// for each bootstrap that it is given as a text.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("google.golang.org/grpc/credentials/tls/certprovider/pemfile.(*watcher).run"))
}
