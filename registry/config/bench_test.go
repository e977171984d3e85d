package config

import (
	"testing"
)

// BenchmarkDecode is what one object costs when it is read: 2,000 of them at the
// start of a control plane are the expected load.
func BenchmarkDecode(b *testing.B) {
	for _, kind := range []string{"VirtualService", "DestinationRule", "EnvoyFilter"} {
		k := kindNamed(b, kind)
		specs := specsOf(b, kind)
		name := map[string]string{"VirtualService": "ok all of http", "DestinationRule": "ok everything", "EnvoyFilter": "ok http filter"}[kind]
		doc := objectJSON(b, k, specs[name])
		b.Run(kind, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode("east", k, doc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
