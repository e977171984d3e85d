package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// oidcIssuer is an issuer with keys and a web server for them.
type oidcIssuer struct {
	key  *ecdsa.PrivateKey
	kid  string
	web  *httptest.Server
	mu   sync.Mutex
	gets int
	// answer replaces the answer to a fetch of keys if set.
	answer http.HandlerFunc
}

func newOIDCIssuer(t testing.TB) *oidcIssuer {
	t.Helper()
	i := &oidcIssuer{}
	i.rotate(t, "k1")
	i.web = httptest.NewTLSServer(i)
	t.Cleanup(i.web.Close)
	return i
}

func (i *oidcIssuer) rotate(t testing.TB, kid string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.kid = key, kid
}

func (i *oidcIssuer) set(answer http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = answer
}

func (i *oidcIssuer) fetched() int { i.mu.Lock(); defer i.mu.Unlock(); return i.gets }

func (i *oidcIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.gets++
	answer, jwks := i.answer, i.jwksLocked()
	i.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
	case r.URL.Path == "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.web.URL, "jwks_uri": i.web.URL + "/keys"})
	default:
		_, _ = w.Write(jwks)
	}
}

func (i *oidcIssuer) jwksLocked() []byte {
	b, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.kid, Use: "sig"}}})
	return b
}

func (i *oidcIssuer) claims() map[string]any {
	return map[string]any{
		"iss": i.web.URL, "aud": "isthmus", "sub": "system:serviceaccount:shop:web",
		"exp": start.Add(time.Hour).Unix(), "iat": start.Unix(), "team": "blue", "app": "api",
	}
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	require.NoError(t, err)
	out, err := jwt.Signed(s).Claims(claims).Serialize()
	require.NoError(t, err)
	return out
}

func (i *oidcIssuer) token(t testing.TB, change func(map[string]any)) string {
	t.Helper()
	claims := i.claims()
	if change != nil {
		change(claims)
	}
	return sign(t, jose.ES256, i.key, i.kid, claims)
}

// oidcFor trusts the issuer's web server and allows loopback, where it is.
func oidcFor(t testing.TB, c *clock, i *oidcIssuer, change func(*OIDCConfig)) *OIDC {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(i.web.Certificate())
	cfg := OIDCConfig{
		Rules:       []JWTRule{{Issuer: i.web.URL, Audiences: []string{"isthmus"}, JWKSURI: i.web.URL + "/keys", Cluster: "c1"}},
		TrustDomain: func(id mesh.ClusterID) (string, bool) { return "cluster.local", id == "c1" },
		Clock:       c.Now, TLS: &tls.Config{RootCAs: pool},
		CheckAddress: func(a netip.Addr) error {
			if a.IsLoopback() {
				return nil
			}
			return CheckAddress(a)
		},
	}
	if change != nil {
		change(&cfg)
	}
	o, err := NewOIDC(cfg)
	require.NoError(t, err)
	return o
}

func TestOIDC(t *testing.T) {
	i, c := newOIDCIssuer(t), newClock()
	want := Caller{
		Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"},
		Cluster:  "c1", Expiry: time.Unix(start.Add(time.Hour).Unix(), 0).UTC(), Source: SourceOIDC,
	}
	for name, change := range map[string]func(*OIDCConfig){
		"by URI":       nil,
		"by discovery": func(cfg *OIDCConfig) { cfg.Rules[0].JWKSURI = "" },
		"inline":       func(cfg *OIDCConfig) { cfg.Rules[0].JWKSURI, cfg.Rules[0].JWKS = "", string(i.jwksLocked()) },
	} {
		t.Run(name, func(t *testing.T) {
			got, err := oidcFor(t, c, i, change).Authenticate(t.Context(), Request{Token: i.token(t, nil)})
			require.NoError(t, err)
			got.Expiry = got.Expiry.UTC()
			require.Equal(t, want, got)
		})
	}
	t.Run("mapped claims", func(t *testing.T) {
		o := oidcFor(t, c, i, func(cfg *OIDCConfig) { cfg.Rules[0].NamespaceClaim, cfg.Rules[0].ServiceAccountClaim = "team", "app" })
		got, err := o.Authenticate(t.Context(), Request{Token: i.token(t, nil)})
		require.NoError(t, err)
		require.Equal(t, mesh.Identity{TrustDomain: "cluster.local", Namespace: "blue", ServiceAccount: "api"}, got.Identity)
	})
}

func TestOIDCRefusals(t *testing.T) {
	i, c := newOIDCIssuer(t), newClock()
	o := oidcFor(t, c, i, nil)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	public, err := x509.MarshalPKIXPublicKey(i.key.Public())
	require.NoError(t, err)
	set := func(name string, v any) string {
		return i.token(t, func(c map[string]any) {
			if c[name] = v; v == nil {
				delete(c, name)
			}
		})
	}
	good := strings.Split(i.token(t, nil), ".")
	payload := func(s string) string { return strings.Split(rawToken(s), ".")[1] }
	iss := `"iss":"` + i.web.URL + `"`
	for name, tc := range map[string]struct {
		token string
		kind  error
	}{
		"none":                  {"", ErrNoCredential},
		"another issuer":        {set("iss", "https://other"), ErrNoCredential},
		"row 20: null":          {rawToken("null"), ErrUnauthenticated},
		"row 20: signed null":   {good[0] + "." + payload("null") + "." + good[2], ErrUnauthenticated},
		"row 21: no audience":   {set("aud", nil), ErrUnauthenticated},
		"row 21: other's":       {set("aud", "other"), ErrUnauthenticated},
		"expired":               {set("exp", start.Add(-clockSkew-time.Minute).Unix()), ErrUnauthenticated},
		"no expiry":             {set("exp", nil), ErrUnauthenticated},
		"from the future":       {set("nbf", start.Add(time.Hour).Unix()), ErrUnauthenticated},
		"no subject":            {set("sub", nil), ErrUnauthenticated},
		"a person":              {set("sub", "alice"), ErrUnauthenticated},
		"empty namespace":       {set("sub", "system:serviceaccount::web"), ErrUnauthenticated},
		"path in account":       {set("sub", "system:serviceaccount:a:../b"), ErrUnauthenticated},
		"another key":           {sign(t, jose.ES256, other, "k1", i.claims()), ErrUnauthenticated},
		"another kind of key":   {sign(t, jose.RS256, rsaKey, "k1", i.claims()), ErrUnauthenticated},
		"public key as secret":  {sign(t, jose.HS256, public, "k1", i.claims()), ErrUnauthenticated},
		"alg none":              {"eyJhbGciOiJub25lIn0." + good[1] + ".", ErrUnauthenticated},
		"changed payload":       {good[0] + "." + payload(`{`+iss+`,"aud":"isthmus","exp":1e10,"sub":"system:serviceaccount:a:b"}`) + "." + good[2], ErrUnauthenticated},
		"signature of another":  {good[0] + "." + good[1] + "." + strings.Split(set("app", "x"), ".")[2], ErrUnauthenticated},
		"signature cut":         {good[0] + "." + good[1] + ".", ErrUnauthenticated},
		"four parts":            {strings.Join(good, ".") + ".x", ErrUnauthenticated},
		"issuer, then nonsense": {rawToken(`{` + iss + `,"aud":{"a":1}}`), ErrUnauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := o.Authenticate(t.Context(), Request{Token: tc.token})
			require.ErrorIs(t, err, tc.kind)
		})
	}
}

// No keys, no entry: every way in which keys cannot be had ends in Unavailable.
func TestOIDCFailsClosed(t *testing.T) {
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	body := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }
	}
	for name, answer := range map[string]http.HandlerFunc{
		"error":                  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"hangs":                  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"not JSON":               body("<html>"),
		"null":                   body("null"),
		"no keys":                body(`{"keys":[]}`),
		"a null key":             body(`{"keys":[null]}`),
		"a secret key":           body(`{"keys":[{"kty":"oct","k":"AAAA"}]}`),
		"endless":                body(strings.Repeat(" ", maxKeyDocument+1)),
		"redirect to metadata":   redirect("https://169.254.169.254/latest/meta-data"),
		"redirect to plain http": redirect("http://example.com/"),
		"redirect in circles":    redirect("/again"),
	} {
		t.Run(name, func(t *testing.T) {
			i, c := newOIDCIssuer(t), newClock()
			i.set(answer)
			o := oidcFor(t, c, i, func(cfg *OIDCConfig) {
				if name == "hangs" {
					cfg.Timeout = 300 * time.Millisecond
				}
			})
			token := i.token(t, nil)
			_, err := o.Authenticate(t.Context(), Request{Token: token})
			require.ErrorIs(t, err, ErrUnavailable)
			if name == "redirect to metadata" {
				require.ErrorContains(t, err, "link-local")
			}
			n := i.fetched()
			_, err = o.Authenticate(t.Context(), Request{Token: token})
			require.ErrorIs(t, err, ErrUnavailable)
			require.Equal(t, n, i.fetched(), "it is not tried again within a second")
			i.set(nil)
			c.Add(2 * time.Second)
			keys := o.rules[i.web.URL] // this machine may be slow
			keys.cfg.Timeout, keys.client.Timeout = time.Minute, time.Minute
			_, err = o.Authenticate(t.Context(), Request{Token: token})
			require.NoError(t, err)
		})
	}
	t.Run("loopback", func(t *testing.T) {
		i, c := newOIDCIssuer(t), newClock()
		o := oidcFor(t, c, i, func(cfg *OIDCConfig) { cfg.CheckAddress = nil })
		_, err := o.Authenticate(t.Context(), Request{Token: i.token(t, nil)})
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorContains(t, err, "loopback")
		require.Zero(t, i.fetched())
	})
	t.Run("caller gives up", func(t *testing.T) {
		i, c := newOIDCIssuer(t), newClock()
		i.set(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		o := oidcFor(t, c, i, func(cfg *OIDCConfig) { cfg.Timeout = 100 * time.Millisecond })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := o.Authenticate(ctx, Request{Token: i.token(t, nil)})
		require.ErrorIs(t, err, ErrUnavailable)
	})
}

// Nobody is let in of a cluster that is not part of the mesh, and the trust
// domain is that of the cluster.
func TestOIDCIdentityIsOfItsCluster(t *testing.T) {
	i, c := newOIDCIssuer(t), newClock()
	of := func(cluster mesh.ClusterID) (Caller, error) {
		o := oidcFor(t, c, i, func(cfg *OIDCConfig) {
			cfg.Rules[0].Cluster = cluster
			cfg.TrustDomain = func(id mesh.ClusterID) (string, bool) {
				td, ok := map[mesh.ClusterID]string{"c1": "one.example", "c2": "two.example", "blank": ""}[id]
				return td, ok
			}
		})
		// What the caller says of its cluster does not count.
		return o.Authenticate(t.Context(), Request{Token: i.token(t, nil), Cluster: "c1"})
	}
	caller, err := of("c2")
	require.NoError(t, err)
	require.Equal(t, mesh.ClusterID("c2"), caller.Cluster)
	require.Equal(t, "two.example", caller.Identity.TrustDomain)
	for _, cluster := range []mesh.ClusterID{"nowhere", "blank"} {
		_, err := of(cluster)
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorContains(t, err, string(cluster))
	}
}

func TestOIDCKeyRotation(t *testing.T) {
	i, c := newOIDCIssuer(t), newClock()
	o := oidcFor(t, c, i, nil)
	ask := func(token string) error {
		_, err := o.Authenticate(t.Context(), Request{Token: token})
		return err
	}
	old := i.token(t, nil)
	require.NoError(t, ask(old))
	require.NoError(t, ask(old))
	require.Equal(t, 1, i.fetched())

	i.rotate(t, "k2")
	require.ErrorIs(t, ask(i.token(t, nil)), ErrUnauthenticated, "strangers cannot make us fetch at will")
	require.Equal(t, 1, i.fetched())
	c.Add(minRefetch)
	require.NoError(t, ask(i.token(t, nil)), "an unknown key is looked for")
	require.ErrorIs(t, ask(old), ErrUnauthenticated)
	require.Equal(t, 2, i.fetched())

	i.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	long := i.token(t, func(c map[string]any) { c["exp"] = start.Add(100 * time.Hour).Unix() })
	c.Add(time.Hour)
	require.NoError(t, ask(long), "the last good keys serve")
	require.Equal(t, 3, i.fetched())
	c.Add(24 * time.Hour)
	require.ErrorIs(t, ask(long), ErrUnavailable, "until they are too old")
}

func TestJWTRules(t *testing.T) {
	r, err := ParseJWTRule(`{"issuer":"https://i","audiences":["a"],"jwks_uri":"https://i/keys","cluster":"c1"}`)
	require.NoError(t, err)
	require.Equal(t, "https://i/keys", r.JWKSURI)
	require.Equal(t, mesh.ClusterID("c1"), r.Cluster)
	for text, field := range map[string]string{
		`{`: "parse JWT rule",
		`{"cluster":"c1","audiences":["a"],"jwksUri":"https://i"}`:                            "field issuer",
		`{"cluster":"c1","issuer":"https://i"}`:                                               "field audiences",
		`{"cluster":"c1","issuer":"x","audiences":["a"],"jwksUri":"http://i"}`:                "field jwksUri",
		`{"cluster":"c1","issuer":"x","audiences":["a"]}`:                                     "set jwksUri or jwks",
		`{"cluster":"c1","issuer":"https://i","audiences":["a"],"namespaceClaim":"ns"}`:       "set both namespaceClaim and serviceAccountClaim",
		`{"issuer":"https://i","audiences":["a"]}`:                                            "field cluster: missing",
		`{"cluster":"","issuer":"https://i","audiences":["a"],"jwks_uri":"https://i/keys"}`:   "field cluster: missing",
		`{"cluster":null,"issuer":"https://i","audiences":["a"],"jwks_uri":"https://i/keys"}`: "field cluster: missing",
	} {
		_, err := ParseJWTRule(text)
		require.ErrorContains(t, err, field, text)
	}
	rule := JWTRule{Issuer: "https://i", Audiences: []string{"a"}, Cluster: "c1"}
	td := func(mesh.ClusterID) (string, bool) { return "td", true }
	_, err = NewOIDC(OIDCConfig{TrustDomain: td, Rules: []JWTRule{rule, rule}})
	require.ErrorContains(t, err, "twice")
	rule.JWKS = `{"keys":[]}`
	_, err = NewOIDC(OIDCConfig{TrustDomain: td, Rules: []JWTRule{rule}})
	require.ErrorContains(t, err, "field jwks")
}

func TestCheckAddress(t *testing.T) {
	for addr, ok := range map[string]bool{
		"203.0.113.7": true, "10.0.0.1": true, "192.168.1.1": true, "2001:db8::1": true, "fd12::1": true,
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "169.254.169.254": false, "fe80::1": false, "fe80::1%eth0": false,
		"0.0.0.0": false, "::": false, "224.0.0.1": false, "ff02::1": false, "255.255.255.255": false, "fd00:ec2::254": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b::7f00:1": false,
		"2002:a9fe:a9fe::1": false, "2002:cb00:7107::1": true, "64:ff9b::cb00:7107": true,
	} {
		err := CheckAddress(netip.MustParseAddr(addr))
		require.Equal(t, ok, err == nil, addr)
		if !ok {
			require.ErrorIs(t, err, ErrForbiddenAddress)
		}
	}
	require.ErrorIs(t, CheckAddress(netip.Addr{}), ErrForbiddenAddress)
}

// FuzzJWT: no token makes an authenticator panic, and none that we did not sign
// gets in.
func FuzzJWT(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f, err)
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k"}}})
	require.NoError(f, err)
	o, err := NewOIDC(OIDCConfig{
		Rules:       []JWTRule{{Issuer: "https://i", Audiences: []string{"a"}, JWKS: string(jwks), Cluster: "c1"}},
		TrustDomain: func(mesh.ClusterID) (string, bool) { return "td", true }, Clock: newClock().Now,
	})
	require.NoError(f, err)
	claims := map[string]any{"iss": "https://i", "aud": "a", "sub": "system:serviceaccount:x:y", "exp": start.Add(time.Hour).Unix()}
	good := sign(f, jose.ES256, key, "k", claims)
	changed := maps.Clone(claims)
	changed["aud"] = []any{"a", 7}
	f.Add(good)
	f.Add(sign(f, jose.ES256, key, "", changed))
	for _, p := range []string{"null", "{}", "[]", `{"iss":"https://i","aud":null,"exp":"1"}`, `{"iss":"https://i","exp":1e400}`} {
		f.Add(rawToken(p))
	}
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := o.Authenticate(t.Context(), Request{Token: token})
		if err == nil {
			signed := good[:strings.LastIndexByte(good, '.')]
			require.True(t, strings.HasPrefix(token, signed), "a token that nobody signed: %s as %s", token, c)
		}
		if claims, err := peekToken(token); err == nil {
			_ = claims.refuseEarly(start, []string{"a"})
		}
	})
}
