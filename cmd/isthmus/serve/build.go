package serve

import "fmt"

// Build says what this binary is.
type Build struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Status   string `json:"status"`
}

// Line renders the build in the form that istioctl splits at its dashes:
// VERSION-REVISION-STATUS.
func (b Build) Line() string { return fmt.Sprintf("%s-%s-%s", b.Version, b.Revision, b.Status) }
