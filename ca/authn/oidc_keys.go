package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
)

const (
	// maxKeyDocument bounds a fetched document, in octets.
	maxKeyDocument = 1 << 20
	// maxKeys bounds the keys of one issuer.
	maxKeys = 128
	// minRefetch is how soon an unknown key ID may cause another fetch.
	minRefetch = 10 * time.Second
)

// issuerKeys are the keys of one issuer, fetched when they are needed. Without
// any key nothing verifies: there is no fallback.
type issuerKeys struct {
	rule    JWTRule
	client  *http.Client
	cfg     OIDCConfig
	flights singleflight.Group

	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetched time.Time // of the keys
	tried   time.Time // last attempt
}

func newIssuerKeys(rule JWTRule, client *http.Client, cfg OIDCConfig) (*issuerKeys, error) {
	k := &issuerKeys{rule: rule, client: client, cfg: cfg}
	if rule.JWKS != "" {
		keys, err := parseKeys([]byte(rule.JWKS))
		if err != nil {
			return nil, fmt.Errorf("check JWT rule of issuer %s: field jwks: %w", rule.Issuer, err)
		}
		k.keys = keys
	}
	return k, nil
}

// verify checks the token's signature with the issuer's keys and reads its
// claims.
func (k *issuerKeys) verify(ctx context.Context, token *jwt.JSONWebToken, dest ...any) error {
	kid := token.Headers[0].KeyID
	keys, fresh, err := k.current(ctx, false)
	if err != nil {
		return err
	}
	if try(keys, kid, token, dest) {
		return nil
	}
	// The issuer may have rotated its keys since; but strangers choose the key
	// ID, so that this costs a fetch once in a while only.
	if !fresh && k.rule.JWKS == "" {
		if keys, fresh, err = k.current(ctx, true); err != nil {
			return err
		}
		if fresh && try(keys, kid, token, dest) {
			return nil
		}
	}
	return fmt.Errorf("verify OIDC token of issuer %s: no key %q verifies its signature: %w", k.rule.Issuer, clip(kid), ErrUnauthenticated)
}

func try(keys []jose.JSONWebKey, kid string, token *jwt.JSONWebToken, dest []any) bool {
	for _, key := range keys {
		if kid != "" && key.KeyID != "" && key.KeyID != kid {
			continue
		}
		if key.Algorithm != "" && key.Algorithm != token.Headers[0].Algorithm {
			continue
		}
		if token.Claims(key.Key, dest...) == nil {
			return true
		}
	}
	return false
}

// current returns the keys, fetched anew if they are too old or if the caller
// misses one; fresh tells whether they were.
func (k *issuerKeys) current(ctx context.Context, missing bool) (keys []jose.JSONWebKey, fresh bool, err error) {
	if k.rule.JWKS != "" {
		return k.keys, false, nil
	}
	now := k.cfg.Clock()
	k.mu.Lock()
	keys, fetched, tried := k.keys, k.fetched, k.tried
	k.mu.Unlock()

	usable := len(keys) > 0 && now.Before(fetched.Add(k.cfg.MaxStale))
	want := missing || now.After(fetched.Add(k.cfg.Refresh))
	if usable && (!want || now.Before(tried.Add(minRefetch))) {
		return keys, false, nil
	}
	if !usable && !tried.IsZero() && now.Before(tried.Add(time.Second)) {
		return nil, false, fmt.Errorf("keys of issuer %s could not be fetched: %w", k.rule.Issuer, ErrUnavailable)
	}
	done := k.flights.DoChan("", func() (any, error) {
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.cfg.Timeout)
		defer cancel()
		return k.refresh(fctx)
	})
	select {
	case <-ctx.Done():
		return nil, false, fmt.Errorf("fetch keys of issuer %s: %w: %w", k.rule.Issuer, context.Cause(ctx), ErrUnavailable)
	case res := <-done:
		if res.Err == nil {
			return res.Val.([]jose.JSONWebKey), true, nil
		}
		if usable {
			return keys, false, nil
		}
		return nil, false, fmt.Errorf("fetch keys of issuer %s: %w: %w", k.rule.Issuer, res.Err, ErrUnavailable)
	}
}

// refresh fetches the keys and keeps them.
func (k *issuerKeys) refresh(ctx context.Context) ([]jose.JSONWebKey, error) {
	keys, err := k.fetch(ctx)
	now := k.cfg.Clock()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tried = now
	if err != nil {
		k.cfg.Logger.Warn("keys of an OIDC issuer cannot be fetched: tokens are checked with the last good keys until they are too old",
			zap.String("issuer", k.rule.Issuer), zap.Time("keysOf", k.fetched), zap.Error(err))
		return nil, err
	}
	k.keys, k.fetched = keys, now
	return keys, nil
}

func (k *issuerKeys) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	uri := k.rule.JWKSURI
	if uri == "" {
		doc, err := k.get(ctx, strings.TrimSuffix(k.rule.Issuer, "/")+"/.well-known/openid-configuration")
		if err != nil {
			return nil, err
		}
		var d struct {
			Issuer  string `json:"issuer"`
			JWKSURI string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(doc, &d); err != nil {
			return nil, fmt.Errorf("parse discovery document: %w", err)
		}
		if d.Issuer != k.rule.Issuer {
			return nil, fmt.Errorf("discovery document is of issuer %q", clip(d.Issuer))
		}
		uri = d.JWKSURI
	}
	if !strings.HasPrefix(uri, "https://") {
		return nil, fmt.Errorf("keys at %q: only https is allowed", clip(uri))
	}
	doc, err := k.get(ctx, uri)
	if err != nil {
		return nil, err
	}
	return parseKeys(doc)
}

func (k *issuerKeys) get(ctx context.Context, uri string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch keys from %s: status %s", uri, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxKeyDocument+1))
	if err != nil {
		return nil, fmt.Errorf("fetch keys from %s: %w", uri, err)
	}
	if len(body) > maxKeyDocument {
		return nil, fmt.Errorf("fetch keys from %s: longer than %d octets", uri, maxKeyDocument)
	}
	return body, nil
}

// parseKeys reads a key set and keeps the keys that may verify signatures. A
// key that we cannot use is left out; a set without any usable key is an error.
func parseKeys(doc []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(doc, &set); err != nil {
		return nil, fmt.Errorf("parse key set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("parse key set: more than %d keys", maxKeys)
	}
	var out []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) != nil || !key.Valid() || (key.Use != "" && key.Use != "sig") || !verifies(key.Key) {
			continue
		}
		out = append(out, key)
	}
	if len(out) == 0 {
		return nil, errors.New("parse key set: it holds no public key that verifies signatures")
	}
	return out, nil
}

// verifies tells public keys of sufficient strength from everything else.
func verifies(key any) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048 && k.N.BitLen() <= 8192
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}
