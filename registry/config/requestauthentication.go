package config

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func requestAuthenticationKind() descriptor {
	kind, versions := securityKind(mesh.KindRequestAuthentication, "requestauthentications")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &security.RequestAuthentication{} },
		typed:    typedAs(func(o *securityv1.RequestAuthentication) proto.Message { return &o.Spec }),
		validate: checks(validateRequestAuthentication),
	}
}

func validateRequestAuthentication(c *checker, r *security.RequestAuthentication) {
	c.targets(r.GetSelector(), r.GetTargetRef(), r.GetTargetRefs())
	for i, j := range r.GetJwtRules() {
		validateJWTRule(c.index("jwtRules", i), j)
	}
}

func validateJWTRule(c *checker, j *security.JWTRule) {
	if j.GetIssuer() == "" && j.GetJwksUri() == "" {
		c.at("issuer").failf("is empty; say who issues the tokens, or give jwksUri")
	}
	c.at("audiences").noneEmpty(j.GetAudiences())
	c.at("fromParams").noneEmpty(j.GetFromParams())
	c.at("fromCookies").noneEmpty(j.GetFromCookies())
	if u := j.GetJwksUri(); u != "" {
		validateJWKSURI(c.at("jwksUri"), u)
	}
	if k := j.GetJwks(); k != "" {
		if why := badKeySet(k); why != "" {
			c.at("jwks").failf("%s", why)
		}
		if j.GetJwksUri() != "" {
			c.at("jwks").warnf("is set beside jwksUri; the keys given here count")
		}
	}
	for i, h := range j.GetFromHeaders() {
		if h.GetName() == "" {
			c.index("fromHeaders", i).at("name").failf("is empty; name the header")
		}
	}
	for i, h := range j.GetOutputClaimToHeaders() {
		at := c.index("outputClaimToHeaders", i)
		if h.GetClaim() == "" {
			at.at("claim").failf("is empty; name the claim")
		}
		if !isPlainHeader(h.GetHeader()) {
			at.at("header").failf("%q is not a header name; use letters, digits, - and _", clip(h.GetHeader()))
		}
	}
	c.at("timeout").millis(j.GetTimeout())
}

// noneEmpty checks that no text of a list is empty.
func (c *checker) noneEmpty(list []string) {
	for i, s := range list {
		if s == "" {
			c.element(i).failf("is empty; remove it")
		}
	}
}

func validateJWKSURI(c *checker, text string) {
	u, err := url.Parse(text)
	if err != nil {
		c.failf("%q is not a URL", clip(text))
		return
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		c.failf("%q has scheme %q; use http or https", clip(text), clip(u.Scheme))
	}
	if p := u.Port(); p != "" {
		if _, err := strconv.ParseUint(p, 10, 31); err != nil {
			c.failf("%q has port %q; use a number", clip(text), clip(p))
		}
	}
}

// badKeySet says what is wrong with a JSON web key set, or with a single key in
// its place.
func badKeySet(text string) string {
	var doc struct {
		Keys []map[string]any `json:"keys"`
	}
	var one map[string]any
	if err := json.Unmarshal([]byte(text), &one); err != nil {
		return "is not a JSON object; give a key set: {\"keys\": [...]}"
	}
	if _, single := one["kty"]; single {
		doc.Keys = append(doc.Keys, one)
	} else if err := json.Unmarshal([]byte(text), &doc); err != nil || one["keys"] == nil {
		return "has no list of keys; give a key set: {\"keys\": [...]}"
	}
	for i, k := range doc.Keys {
		if why := badKey(k); why != "" {
			return fmt.Sprintf("key %d %s", i, why)
		}
	}
	return ""
}

func badKey(k map[string]any) string {
	needs := map[string][]string{"RSA": {"n", "e"}, "EC": {"crv", "x", "y"}, "OKP": {"crv", "x"}, "oct": {"k"}}
	kind, _ := k["kty"].(string)
	fields, ok := needs[kind]
	if !ok {
		return fmt.Sprintf("has kty %q; use RSA, EC, OKP or oct", clip(kind))
	}
	for _, f := range fields {
		v, _ := k[f].(string)
		if v == "" {
			return fmt.Sprintf("has no %s, which kty %s needs", f, kind)
		}
		if f == "crv" {
			continue
		}
		v = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(v, "="))
		if _, err := base64.RawURLEncoding.DecodeString(v); err != nil {
			return fmt.Sprintf("has a %s that is not base64url", f)
		}
	}
	return ""
}
