package status

import (
	"context"
	"fmt"

	"github.com/isthmus-mesh/isthmus/registry/config"
)

// leaseName is the name of the lock that decides who writes, before a revision.
const leaseName = "isthmus-gateway-status"

// LeaseName is the name of the lock of a revision.
func LeaseName(revision string) string { return config.NameOf(leaseName, revision) }

// Run stands for election and writes while it leads, until the context ends.
// Call it once the primary has been read completely: before, much would seem to
// be missing.
func (w *Writer) Run(ctx context.Context) error {
	if err := w.cfg.Elect(ctx, w.lead); err != nil && ctx.Err() == nil {
		return fmt.Errorf("elect the writer of gateway status: %w", err)
	}
	return nil
}
