// Package webhooks keeps the webhook configurations of one cluster usable: the
// bundle that the API server verifies the control plane with is written into
// those of its revision and follows the roots, and validation may refuse
// objects from the moment on that it answers.
//
// It owns two fields of objects that others make: caBundle, and failurePolicy of
// validation. It writes them with server-side apply under a field manager of its
// own, or by update where patching is not allowed, and one replica does. Where
// another manager insists on a bundle, that is told once and the object left
// alone. It makes no configurations, and knows neither roots nor which clusters
// there are.
package webhooks
