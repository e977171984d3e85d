package apiserver_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// orphanEnv makes this test binary a parent that does nothing but run a
// cluster in the directory that it names, until it is killed.
const orphanEnv = "APISERVER_TEST_ORPHAN_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(orphanEnv); dir != "" {
		cluster, err := apiserver.Start(context.Background(), apiserver.Config{Dir: dir})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(cluster.URL())
		select {}
	}
	goleak.VerifyTestMain(m)
}
