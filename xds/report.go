package xds

// TypeHealth is the type in which an agent reports its workload's health: a
// request without an error if it is well.
const TypeHealth = "type.googleapis.com/istio.v1.HealthInformation"

// Report is what a proxy reports of itself.
type Report struct {
	Failed bool
	// Message says what failed, in the proxy's words, cut to a bounded length.
	Message string
}
