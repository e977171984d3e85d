package status

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// knowledge is what is known of a Secret or ConfigMap, and since when.
type knowledge struct {
	state gatewayapi.CredentialState
	at    time.Time
}

// holds is how long it is before the object is looked at again: sooner if
// somebody may be about to put it right.
func (k knowledge) holds() time.Duration {
	if k.state == gatewayapi.CredentialUsable {
		return look
	}
	return lookAgain
}

// translate works out all statuses. Secrets and ConfigMaps that objects name are
// looked at for it.
func (w *Writer) translate(ctx context.Context, cat *registry.Catalog) *gatewayapi.Result {
	in := cat.RoutingInput()
	in.Credential = func(kind string, n gatewayapi.Name) gatewayapi.CredentialState {
		return w.credentials[gatewayapi.Credential{Kind: kind, Name: n}].state
	}
	w.unsettled = map[mesh.ObjectKey]struct{}{}
	if w.cfg.Routers != nil {
		in.Infrastructure = func(n gatewayapi.Name) gatewayapi.Infrastructure {
			known, settled := w.cfg.Routers.State(n)
			if !settled {
				w.unsettled[mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: n.Namespace, Name: n.Name}] = struct{}{}
			}
			return known
		}
	}
	res := w.translator.Translate(in)
	changed := false
	for c := range w.credentials {
		if _, named := res.Credentials[c]; !named {
			delete(w.credentials, c)
		}
	}
	for c := range res.Credentials {
		old, known := w.credentials[c]
		if known && w.cfg.Clock().Sub(old.at) < old.holds() {
			continue
		}
		state := w.examine(ctx, c)
		if state == gatewayapi.CredentialUnknown {
			state = old.state // what was known stays
		}
		w.credentials[c] = knowledge{state, w.cfg.Clock()}
		changed = changed || state != old.state
	}
	if changed {
		return w.translator.Translate(in)
	}
	return res
}

// examine looks at a Secret or ConfigMap.
func (w *Writer) examine(ctx context.Context, c gatewayapi.Credential) gatewayapi.CredentialState {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	good := false
	if c.Kind == "ConfigMap" {
		m, getErr := w.cfg.Client.CoreV1().ConfigMaps(c.Name.Namespace).Get(ctx, c.Name.Name, metav1.GetOptions{})
		if err = getErr; err == nil {
			good = x509.NewCertPool().AppendCertsFromPEM([]byte(m.Data["ca.crt"]))
		}
	} else {
		s, getErr := w.cfg.Client.CoreV1().Secrets(c.Name.Namespace).Get(ctx, c.Name.Name, metav1.GetOptions{})
		if err = getErr; err == nil {
			good = keyPair(s.Data)
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		return gatewayapi.CredentialMissing
	case err != nil:
		return gatewayapi.CredentialUnknown
	case good:
		return gatewayapi.CredentialUsable
	}
	return gatewayapi.CredentialMalformed
}

// keyPair reports whether a Secret holds a certificate and its key, under any of
// the names that are read.
func keyPair(data map[string][]byte) bool {
	for _, names := range [][2]string{{"tls.crt", "tls.key"}, {"cert", "key"}} {
		if _, err := tls.X509KeyPair(data[names[0]], data[names[1]]); err == nil {
			return true
		}
	}
	return false
}
