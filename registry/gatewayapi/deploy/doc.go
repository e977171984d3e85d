// Package deploy gives Gateways of the Kubernetes Gateway API routers of their
// own: a ServiceAccount, a Service and a Deployment each, and where parameters ask
// for them a HorizontalPodAutoscaler and a PodDisruptionBudget.
//
// It owns what these objects say ([Make], a pure function), what users may change
// of them by parameters, whose objects they are, and applying them: one replica
// writes, by server-side apply under a manager of its own, so that what others
// set stays. It does not know who leads (registry/gatewayapi/status does, and
// tells what is said of the routers in the Gateway's status), nor how a proxy
// gets into a pod: injection does that.
//
// # Trust
//
// Whoever may write a Gateway gets a proxy that runs in the Gateway's namespace
// under an account made for it, and nothing more: pods are built of typed values,
// never of text with users' words in it; annotations that would steer injection
// are left off the pods, but for those that only tune the proxy; an account that
// somebody else made is used if its maker labelled it for the Gateway, else not.
//
// Parameters are a ConfigMap beside the Gateway. Many may write those who may not
// make pods, so a closed list of fields counts in them (see allowed): how many
// pods, how large, where they run, how the Service is reached. Images, commands,
// volumes, accounts, host namespaces, security contexts, priorities, selectors
// and external IPs are refused by name. The defaults of a class are a ConfigMap in
// the system namespace, whose writers can change what is injected anyway: all
// fields count there, except those by which an object is found.
//
// Names are those of
// https://istio.io/latest/docs/tasks/traffic-management/ingress/gateway-api/#automated-deployment
package deploy
