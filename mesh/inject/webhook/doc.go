// Package webhook answers the admission reviews of API servers that ask for a
// proxy in a pod. It owns the HTTP side: bounds on bodies, time and concurrency,
// both versions of AdmissionReview, metrics under istiod's names. What becomes of
// a pod is decided in package inject; where configuration and facts about
// clusters come from is the caller's business.
//
// What a pod's owner has to put right (an annotation, the name of a template)
// is answered with a refusal that says so. What the control plane cannot do now
// (no configuration yet, too much to do) is answered with 503, so that the
// failure policy of the webhook decides.
package webhook
