package ca

import (
	"context"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Source is a place that issuing material comes from.
type Source interface {
	// Name tells people which source it is.
	Name() string
	// Load reads the material as it is now. [ErrNoBundle] means that the source
	// does not exist: then the next one counts. Any other error means that it
	// cannot be told what the source holds, or that it is bad: then nothing
	// changes.
	Load(ctx context.Context) (*Bundle, error)
	// Watch calls changed after the material may have changed, until the context
	// ends. It may miss changes: sources are loaded from time to time anyway.
	Watch(ctx context.Context, changed func()) error
	// Object is what Events about the source are attached to.
	Object() mesh.ObjectRef
}

// renewingSource is a source that makes its own material.
type renewingSource interface {
	Source
	// renew returns a successor if the current material nears its end, else nil.
	renew(current *Bundle, now time.Time) (*Bundle, error)
	// commit replaces the material with ID replaced by its successor; it does
	// nothing if the source holds something else by now.
	commit(ctx context.Context, next *Bundle, replaced string) error
}

// EventFunc publishes a Kubernetes Event of type Warning about an object. It
// must not block.
type EventFunc func(about mesh.ObjectRef, reason, message string)
