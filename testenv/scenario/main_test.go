package scenario

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(lending{m}) }

// lending stops the clusters before leaks are looked for.
type lending struct{ *testing.M }

func (l lending) Run() int {
	defer machines.close()
	return l.M.Run()
}
