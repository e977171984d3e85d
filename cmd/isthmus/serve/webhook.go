package serve

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/mesh/inject"
	"github.com/isthmus-mesh/isthmus/mesh/inject/webhook"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config/admission"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
)

// webhooksListener is the name of the listener of the webhooks.
const webhooksListener = "webhooks"

// awaitServing is how often the webhooks look for a certificate at start.
const awaitServing = 50 * time.Millisecond

// webhooksWanted reports whether the webhooks are to run: they need the CA's
// certificate, so they need the CA.
func (c *Control) webhooksWanted() bool { return c.settings.HTTPSAddr != "" && c.secured() }

// newWebhooks makes the webhooks that inject and validate; world and trust must
// be there.
func (c *Control) newWebhooks() error {
	if !c.webhooksWanted() {
		return nil
	}
	c.injection = newInjection(c)
	handler, err := webhook.New(webhook.Config{
		Current:      c.injection.config,
		Mesh:         func() *meshconfig.MeshConfig { return c.store.Catalog().Settings.Mesh },
		ProxyConfigs: func() []inject.ProxyConfigResource { return proxyConfigs(c.store.Catalog()) },
		Facts:        newInjectionFacts(c).about,
		Primary:      c.settings.Primary,
		Log:          c.log.Named("inject"),
		Registerer:   c.metrics,
	})
	if err != nil {
		return err
	}
	c.injection.handler = handler
	c.validation, err = admission.New(admission.Config{Cluster: mesh.ClusterID(c.settings.Primary), Log: c.log, Metrics: c.metrics})
	return err
}

// proxyConfigs lists the users' ProxyConfig objects, oldest first.
func proxyConfigs(cat *registry.Catalog) []inject.ProxyConfigResource {
	objects := cat.Objects(mesh.KindProxyConfig)
	out := make([]inject.ProxyConfigResource, 0, len(objects))
	for _, o := range objects {
		if spec, ok := o.Spec.(*networkingv1beta1.ProxyConfig); ok {
			out = append(out, inject.ProxyConfigResource{Namespace: o.Key.Namespace, Spec: spec})
		}
	}
	return out
}

// webhookMux serves what port 15017 serves.
func (c *Control) webhookMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", c.serveReady)
	mux.Handle("/inject", c.injection.handler)
	mux.Handle("/inject/", c.injection.handler)
	mux.Handle("/validate", c.validation)
	mux.Handle("/validate/", c.validation)
	return mux
}

// serveWebhooks serves over TLS, with the certificate that the CA renews, from
// the moment there is one until the context ends.
func (c *Control) serveWebhooks(l net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		config := c.awaitWebhookTLS(ctx)
		if config == nil {
			return nil
		}
		return serveHTTP(tls.NewListener(l, config), c.sendElsewhere(c.webhookMux()), c.settings.ShutdownDuration)(ctx)
	}
}

// awaitWebhookTLS waits for a certificate to serve with; nil if the context
// ended before.
func (c *Control) awaitWebhookTLS(ctx context.Context) *tls.Config {
	tick := time.NewTicker(awaitServing)
	defer tick.Stop()
	for {
		if s := c.trust.serving.Load(); s != nil && s.Ready() {
			return s.WebhookTLSConfig()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// webhookParts are what the webhooks need to run.
func (c *Control) webhookParts() []part {
	if c.injection == nil {
		return nil
	}
	parts := []part{{"injection configuration", c.injection.run}}
	if l := c.listeners[webhooksListener]; l != nil {
		parts = append(parts, part{webhooksListener, c.serveWebhooks(l)})
	}
	return parts
}

// WebhookAddr is where the webhooks listen, "" if they do not.
func (c *Control) WebhookAddr() string { return c.addr(webhooksListener) }

// listenWebhooks opens the listener of the webhooks.
func (c *Control) listenWebhooks() error {
	if !c.webhooksWanted() {
		return nil
	}
	l, err := net.Listen("tcp", c.settings.HTTPSAddr)
	if err != nil {
		return fmt.Errorf("listen for %s: %w", webhooksListener, err)
	}
	c.listeners[webhooksListener] = l
	c.log.Info(fmt.Sprintf("%s on %s", webhooksListener, l.Addr()))
	return nil
}
