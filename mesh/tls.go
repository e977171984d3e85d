package mesh

import "slices"

// KnownCipherSuites returns those of a list that proxies know, each once: one
// that they do not know would make them refuse the whole listener or upstream.
// What begins with a sign is an expression over suites and passes.
func KnownCipherSuites(list []string) []string { return known(list, KnownCipherSuite) }

// KnownCurves returns those of a list that proxies know, each once.
func KnownCurves(list []string) []string { return known(list, KnownCurve) }

func known(list []string, is func(string) bool) []string {
	var out []string
	for _, s := range list {
		if is(s) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// KnownCipherSuite reports whether proxies know a cipher suite of TLS 1.2 and
// before by this name.
func KnownCipherSuite(s string) bool {
	if s == "" || s == "ALL" {
		return true
	}
	c := s[0]
	if name := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'; !name {
		return true
	}
	return slices.Contains([]string{
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
		"ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
		"ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA", "DES-CBC3-SHA",
	}, s)
}

// KnownCurve reports whether proxies know a group for the exchange of keys.
func KnownCurve(s string) bool {
	return slices.Contains([]string{"P-224", "P-256", "P-384", "P-521", "X25519", "X25519Kyber768Draft00", "X25519MLKEM768"}, s)
}
