package machine

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// A filtered watch of client-go may hold one event after it was stopped: that
	// of the namespace which the test server makes ready.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("k8s.io/apimachinery/pkg/watch.(*filteredWatch).loop"))
}
