package serve

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Forms of the names of secrets, and the ending that asks for roots.
const (
	secretScheme        = "kubernetes://"
	secretGatewayScheme = "kubernetes-gateway://"
	secretRootsSuffix   = "-cacert"
)

// secretName is what a resource name of SDS means.
type secretName struct {
	namespace, name string
	// ca: the roots to verify clients with, not a certificate.
	ca bool
}

// secretKey is a Secret of a cluster, or a ConfigMap.
type secretKey struct {
	cluster         mesh.ClusterID
	namespace, name string
	// configMap: a ConfigMap rather than a Secret.
	configMap bool
}

func (k secretKey) String() string {
	return fmt.Sprintf("%s/%s of cluster %s", k.namespace, k.name, k.cluster)
}

// parseSecretName reads kubernetes://NAME, kubernetes://NAMESPACE/NAME and
// kubernetes-gateway://NAMESPACE/NAME. A name without a namespace is in the
// proxy's.
func parseSecretName(resource, proxyNamespace string) (secretName, error) {
	bad := func(why string) (secretName, error) {
		return secretName{}, fmt.Errorf("secret %.300q: %s", resource, why)
	}
	rest, whole := strings.CutPrefix(resource, secretGatewayScheme)
	if !whole {
		var ok bool
		if rest, ok = strings.CutPrefix(resource, secretScheme); !ok {
			return bad("want kubernetes://NAME or kubernetes-gateway://NAMESPACE/NAME")
		}
	}
	ns, name, has := strings.Cut(rest, "/")
	switch {
	case !has && whole:
		return bad("want kubernetes-gateway://NAMESPACE/NAME")
	case !has:
		ns, name = proxyNamespace, rest
	}
	if len(validation.IsDNS1123Subdomain(name)) > 0 || len(validation.IsDNS1123Label(ns)) > 0 {
		return bad("is not the name of a Secret")
	}
	return secretName{namespace: ns, name: name, ca: strings.HasSuffix(name, secretRootsSuffix)}, nil
}

// places are the Secrets that may hold it, best first: the proxy's cluster
// before the primary, for roots a Secret of its own before that of the
// certificate.
func (n secretName) places(cluster, primary mesh.ClusterID) []secretKey {
	names := n.meant()
	var out []secretKey
	for _, c := range []mesh.ClusterID{cluster, primary} {
		if len(out) > 0 && c == cluster {
			break
		}
		for _, name := range names {
			out = append(out, secretKey{cluster: c, namespace: n.namespace, name: name})
		}
	}
	return out
}

// meant are the names of the Secrets that may hold it.
func (n secretName) meant() []string {
	if short, ok := strings.CutSuffix(n.name, secretRootsSuffix); n.ca && ok && short != "" {
		return []string{n.name, short}
	}
	return []string{n.name}
}

// firstKey returns the first entry that is not empty.
func firstKey(data map[string][]byte, keys ...string) []byte {
	for _, k := range keys {
		if len(data[k]) > 0 {
			return data[k]
		}
	}
	return nil
}

// checkPair refuses what a proxy would refuse, and keep failing with.
func checkPair(cert, key []byte) error {
	if cert == nil || key == nil {
		return errors.New("holds no certificate with its key: want tls.crt and tls.key, or cert and key")
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		// The error of the library never quotes the key.
		return fmt.Errorf("certificate and key: %w", err)
	}
	return nil
}

func checkRoots(pem []byte) error {
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return errors.New("roots: hold no certificate in PEM form")
	}
	return nil
}
