package serve

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/hashicorp/go-multierror"
)

// part is something that runs for as long as the control plane does.
type part struct {
	name string
	run  func(context.Context) error
}

// runAll runs every part until the first one ends or the context does, then
// stops the others and waits for them. A part that panics counts as failed. It
// returns all errors, but none for parts that ended because they were told to.
func runAll(ctx context.Context, parts []part) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs *multierror.Error
	)
	for _, p := range parts {
		wg.Go(func() {
			defer stop()
			err := runOne(ctx, p)
			if err == nil || ctx.Err() != nil && isDone(err) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			errs = multierror.Append(errs, fmt.Errorf("run %s: %w", p.name, err))
		})
	}
	wg.Wait()
	return errs.ErrorOrNil()
}

func runOne(ctx context.Context, p part) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return p.run(ctx)
}

// isDone reports whether an error only says that the context ended.
func isDone(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
