package serve

import (
	"net/http"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/page"
)

// newPage serves the page that people look at. It reads everything from the
// debug views of the control plane that serves it.
func newPage(*Control) http.Handler { return page.New() }
