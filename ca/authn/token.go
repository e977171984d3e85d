package authn

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// clockSkew is how far the clocks of whoever issued a token and ours may
// differ.
const clockSkew = 2 * time.Minute

// tokenClaims are the claims of a JWT that are read before (and, for the
// expiry, after) somebody vouched for it.
type tokenClaims struct {
	Issuer    string          `json:"iss"`
	Audience  audience        `json:"aud"`
	Expiry    json.Number     `json:"exp"`
	NotBefore json.Number     `json:"nbf"`
	Subject   json.RawMessage `json:"sub"`
}

// audience is one string or a list of them.
type audience []string

// UnmarshalJSON reads both forms.
func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*a = audience{one}
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return errors.New("aud is neither a string nor a list of strings")
	}
	*a = many
	return nil
}

// peekToken reads the claims of a JWT without checking its signature. They are
// good for refusing early, never for accepting.
func peekToken(token string) (tokenClaims, error) {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return tokenClaims{}, errors.New("not a JWT of three parts")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return tokenClaims{}, errors.New("payload is not base64url")
	}
	// A JSON null decodes into anything without an error and sets nothing: an
	// empty pointer behind it once crashed istiod. Only an object will do.
	if t := strings.TrimLeft(string(payload), " \t\r\n"); !strings.HasPrefix(t, "{") {
		return tokenClaims{}, errors.New("payload is not a JSON object")
	}
	var c tokenClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		return tokenClaims{}, fmt.Errorf("payload: %w", err)
	}
	return c, nil
}

// expiry returns the claim exp, or the zero time if there is none that can be
// a time.
func (c tokenClaims) expiry() time.Time { return numericDate(c.Expiry) }

func numericDate(n json.Number) time.Time {
	if n == "" {
		return time.Time{}
	}
	f, err := n.Float64()
	const lastSecond = 253402300799 // end of the year 9999
	if err != nil || !(f > 0 && f <= lastSecond) {
		return time.Time{}
	}
	return time.Unix(int64(f), 0)
}

// refuseEarly says why no API server can accept the token, "" if one may. It
// saves a review for tokens that are plainly wrong.
func (c tokenClaims) refuseEarly(now time.Time, audiences []string) string {
	exp := c.expiry()
	switch {
	case exp.IsZero():
		return "token has no expiry"
	case now.After(exp.Add(clockSkew)):
		return "token expired at " + exp.UTC().Format(time.RFC3339)
	case !intersects(c.Audience, audiences):
		return fmt.Sprintf("token is for audience %q, not for one of %q", clipAll(c.Audience), audiences)
	}
	return ""
}

func clipAll(in []string) []string {
	if len(in) > 8 {
		in = in[:8]
	}
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = clip(s)
	}
	return out
}

func intersects(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
