package multicluster

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// maxToken bounds the tokens that are read, in bytes; an API server's have
// about one thousand.
const maxToken = 16 << 10

// accountToken is what a token of a service account says of itself. Nothing of
// it is verified: it is the cluster's business what the token is good for.
type accountToken struct {
	namespace, name string
	issued, expires time.Time
}

// readToken reads a token that ends. Others, and those that are no service
// account's, are none of ours.
func readToken(token string) (accountToken, bool) {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return accountToken{}, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return accountToken{}, false
	}
	var claims struct {
		Subject string  `json:"sub"`
		Issued  float64 `json:"iat"`
		Expires float64 `json:"exp"`
	}
	// Beyond the year 9999 times cannot be written any more.
	const latest = 253402300799
	if json.Unmarshal(raw, &claims) != nil || claims.Expires <= claims.Issued || claims.Issued <= 0 || claims.Expires > latest {
		return accountToken{}, false
	}
	account, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	namespace, name, found := strings.Cut(account, ":")
	if !ok || !found || namespace == "" || name == "" {
		return accountToken{}, false
	}
	return accountToken{namespace: namespace, name: name, issued: time.Unix(int64(claims.Issued), 0), expires: time.Unix(int64(claims.Expires), 0)}, true
}

func (t accountToken) lifetime() time.Duration { return t.expires.Sub(t.issued) }

// renewAt is when half of the lifetime is over: there is as much time for
// renewing it as it was good for until then.
func (t accountToken) renewAt() time.Time { return t.issued.Add(t.lifetime() / 2) }

// lateAt is when a token should have been renewed long ago.
func (t accountToken) lateAt() time.Time { return t.issued.Add(t.lifetime() * 3 / 4) }

// withToken returns a kubeconfig with another token for its current context.
func withToken(kubeconfig []byte, token string) ([]byte, error) {
	cfg, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	current := cfg.Contexts[cfg.CurrentContext]
	if current == nil || cfg.AuthInfos[current.AuthInfo] == nil {
		return nil, fmt.Errorf("read kubeconfig: current context %q names no user", printable(cfg.CurrentContext))
	}
	cfg.AuthInfos[current.AuthInfo].Token = token
	out, err := clientcmd.Write(*cfg)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	return out, nil
}

// TokenExpiry returns when the token in a kubeconfig of a remote secret was
// issued and when it ends; false if it does not end, or is no token.
func TokenExpiry(kubeconfig []byte, o Options) (issued, expires time.Time, ok bool) {
	cfg, err := Sanitize(kubeconfig, o)
	if err != nil {
		return time.Time{}, time.Time{}, false
	}
	t, ok := readToken(cfg.BearerToken)
	return t.issued, t.expires, ok
}
