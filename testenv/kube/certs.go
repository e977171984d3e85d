package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Files of the PKI, in the data directory.
const (
	caCertFile     = "ca.crt"
	serverCertFile = "server.crt"
	serverKeyFile  = "server.key"
	adminCertFile  = "admin.crt"
	adminKeyFile   = "admin.key"
	tokenKeyFile   = "service-account.key"
	pkiDoneFile    = "pki.done"
)

// validity of every certificate; a data directory is not kept longer.
const validity = 10 * 365 * 24 * time.Hour

// pki is what clients and controllers need of the cluster's certificates.
type pki struct {
	ca        []byte // PEM
	adminCert []byte // PEM; O=system:masters
	adminKey  []byte // PEM
}

// loadOrCreatePKI reads the certificates in dir, or makes new ones.
func loadOrCreatePKI(dir string) (*pki, error) {
	_, err := os.Stat(filepath.Join(dir, pkiDoneFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := createPKI(dir); err != nil {
			return nil, fmt.Errorf("create certificates: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("look for certificates: %w", err)
	}
	var p pki
	for name, into := range map[string]*[]byte{
		caCertFile: &p.ca, adminCertFile: &p.adminCert, adminKeyFile: &p.adminKey,
	} {
		if *into, err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
	}
	return &p, nil
}

// createPKI makes a CA, forgets its key, and keeps what it signed. The last
// file says that all are there.
func createPKI(dir string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate CA key: %w", err)
	}
	ca := template("isthmus-kube-ca")
	ca.IsCA, ca.BasicConstraintsValid = true, true
	ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return fmt.Errorf("sign CA: %w", err)
	}

	server := template("kube-apiserver")
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}

	admin := template("isthmus-admin")
	admin.Subject.Organization = []string{"system:masters"}
	admin.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

	return errors.Join(
		writePEM(filepath.Join(dir, caCertFile), "CERTIFICATE", caDER),
		issue(dir, serverCertFile, serverKeyFile, server, ca, caKey),
		issue(dir, adminCertFile, adminKeyFile, admin, ca, caKey),
		createTokenKey(filepath.Join(dir, tokenKeyFile)),
		os.WriteFile(filepath.Join(dir, pkiDoneFile), nil, 0o600),
	)
}

// createTokenKey makes the key that signs ServiceAccount tokens: RSA, because
// that is what the tokens of real clusters are signed with.
func createTokenKey(path string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("generate token key: %w", err)
	}
	return writePEM(path, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

// issue makes a key and a certificate for it, signed by the CA.
func issue(dir, certFile, keyFile string, leaf, ca *x509.Certificate, caKey crypto.Signer) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate key of %s: %w", leaf.Subject.CommonName, err)
	}
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return fmt.Errorf("sign %s: %w", leaf.Subject.CommonName, err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key of %s: %w", leaf.Subject.CommonName, err)
	}
	return errors.Join(
		writePEM(filepath.Join(dir, certFile), "CERTIFICATE", der),
		writePEM(filepath.Join(dir, keyFile), "EC PRIVATE KEY", keyDER),
	)
}

func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(validity),
	}
}

func writePEM(path, kind string, der []byte) error {
	raw := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return fmt.Errorf("write PEM file: %w", err)
	}
	return nil
}

// restConfig is the administrator's client configuration.
func (p *pki) restConfig(url string) *rest.Config {
	return &rest.Config{
		Host: url,
		TLSClientConfig: rest.TLSClientConfig{
			CAData: p.ca, CertData: p.adminCert, KeyData: p.adminKey,
		},
		ContentConfig: rest.ContentConfig{
			ContentType:        "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
		UserAgent: "isthmus-kube",
		QPS:       -1, // no limit: the queue of a busy test is long enough
	}
}

// writeKubeconfig writes the same as a kubeconfig with embedded data.
func (p *pki) writeKubeconfig(path, name, url string) error {
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: url, CertificateAuthorityData: p.ca}
	cfg.AuthInfos["admin"] = &clientcmdapi.AuthInfo{
		ClientCertificateData: p.adminCert, ClientKeyData: p.adminKey,
	}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: "admin"}
	cfg.CurrentContext = name
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
