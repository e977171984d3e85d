package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestValidateGateway(t *testing.T) {
	server := func(port, hosts, rest string) string {
		return "servers:\n- port: " + port + "\n  hosts: " + hosts + "\n" + rest
	}
	http, https := "{number: 80, name: http, protocol: HTTP}", "{number: 443, name: https, protocol: https}"
	tests := []struct{ name, spec, field, message string }{
		{"HTTP", server(http, `["*"]`, ""), "", ""},
		{"hosts with namespaces, wildcards, addresses", server(http, `["*/*", "./a.example", "ns-1/*.example.com.", 203.0.113.1, "2001:db8::1", "A.Example"]`, ""), "", ""},
		{"HTTPS with a credential", server(https, `[a.x]`, "  tls: {mode: SIMPLE, credentialName: c}"), "", ""},
		{"HTTPS with files", server(https, `[a.x]`, "  tls: {mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /ca}"), "", ""},
		{"ISTIO_MUTUAL", server(https, `[a.x]`, "  tls: {mode: ISTIO_MUTUAL}"), "", ""},
		{"redirect", server(http, `[a.x]`, "  tls: {httpsRedirect: true}"), "", ""},
		{"a unix socket has no port", "servers: [{bind: 'unix:///run/x', port: {name: a, protocol: GRPC-Web}, hosts: [a.x]}]", "", ""},

		{"no servers", "selector: {a: b}", "servers", "is empty; a gateway needs at least one server"},
		{"no port", "servers: [{hosts: [a.x]}]", "servers[0].port", "is missing; give number, name and protocol"},
		{"port 0", server("{name: a, protocol: TCP}", "[a.x]", ""), "servers[0].port.number", "0 is not a port; use 1-65535"},
		{"no port name", server("{number: 80, protocol: TCP}", "[a.x]", ""), "servers[0].port.name", "is empty; name the port"},
		{"unknown protocol", server("{number: 80, name: a, protocol: SMTP}", "[a.x]", ""), "servers[0].port.protocol",
			`"SMTP" is not known; use one of HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP, TLS`},
		{"bad bind", server(http, "[a.x]", "  bind: nowhere"), "servers[0].bind", `"nowhere" is neither an IP address nor unix://PATH`},
		{"empty host", server(http, `[a.x, ""]`, ""), "servers[0].hosts[1]", `"" is not a host name: it is empty`},
		{"wildcard inside", server(http, `["a.*.b"]`, ""), "servers[0].hosts[0]", `"a.*.b" is not a host name: a wildcard may only stand at the start, as in *.example.com`},
		{"two dots", server(http, `["a..b"]`, ""), "servers[0].hosts[0]", `"a..b" is not a host name: it has an empty label; remove the dot`},
		{"underscore", server(http, `["a_b"]`, ""), "servers[0].hosts[0]", `"a_b" is not a host name: label "a_b" must be letters, digits and inner hyphens, at most 63`},
		{"too long", server(http, "["+strings.Repeat("a.", 150)+"b]", ""), "servers[0].hosts[0]", `"` + strings.Repeat("a.", 40) + `..." is not a host name: it is longer than 255 characters`},
		{"bad namespace", server(http, `["A_/x"]`, ""), "servers[0].hosts[0]", `"A_" is not a namespace; use lower-case letters, digits and inner hyphens, at most 63`},
		{"namespace without host", server(http, `["ns/"]`, ""), "servers[0].hosts[0]", `"" is not a host name: it is empty`},
		{"HTTPS without tls", server(https, "[a.x]", ""), "servers[0].tls", "is missing; a port of protocol HTTPS needs a tls mode"},
		{"tls on HTTP", server(http, "[a.x]", "  tls: {mode: SIMPLE, credentialName: c}"), "servers[0].tls", "is set on a port of protocol HTTP; use protocol HTTPS or TLS, or remove it"},
		{"no certificate", server(https, "[a.x]", "  tls: {mode: SIMPLE}"), "servers[0].tls", "has no certificate; mode SIMPLE needs credentialName, or serverCertificate and privateKey"},
		{"two certificates", server(https, "[a.x]", "  tls: {mode: SIMPLE, credentialName: c, serverCertificate: a, privateKey: b}"), "servers[0].tls", "names certificates in serverCertificate and credentialName; keep one"},
		{"no key", server(https, "[a.x]", "  tls: {mode: SIMPLE, serverCertificate: a}"), "servers[0].tls", "has only one of serverCertificate and privateKey; give both"},
		{"no trust", server(https, "[a.x]", "  tls: {mode: MUTUAL, serverCertificate: a, privateKey: b}"), "servers[0].tls.caCertificates", "is empty; mode MUTUAL must know whom to trust"},
		{"ISTIO_MUTUAL with certificate", server(https, "[a.x]", "  tls: {mode: ISTIO_MUTUAL, credentialName: c}"), "servers[0].tls", "names certificates; mode ISTIO_MUTUAL takes those of the mesh, remove them"},
		{"half a pair", server(https, "[a.x]", "  tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: x}]}"), "servers[0].tls.tlsCertificates[0]", "has only one of serverCertificate and privateKey; give both"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode("east", gatewayKindOf(t), gatewayJSON(t, tt.spec))
			if tt.field == "" {
				require.NoError(t, err)
				return
			}
			var fe *FieldError
			require.ErrorAs(t, err, &fe)
			require.Equal(t, FieldError{"spec." + tt.field, tt.message}, *fe)
		})
	}
}
