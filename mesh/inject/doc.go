// Package inject puts a proxy into a pod: it decides whether a pod gets one,
// runs the templates, merges what they say into the pod, and does what templates
// cannot do (the order of containers, probes, scraping, the status annotation).
//
// It is pure: a pod, its namespace, the mesh's settings and a [Config] in, a
// pod and a JSON patch out. The same input gives the same output, and a pod
// that has been injected comes out unchanged. It owns the format of ConfigMap
// istio-sidecar-injector (keys config and values), the functions that templates
// call, and the templates that are used where a mesh brings none of its own
// ([DefaultConfig], [DefaultValues]).
//
// It does not know API servers, HTTP (see package webhook below this one), or
// where the ConfigMap, the mesh's settings and namespaces come from.
package inject
