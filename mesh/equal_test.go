package mesh

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A field that Equal forgets is a change that is never published: set each one
// field and see that Equal notices.
func TestEqualSeesEveryField(t *testing.T) {
	eachField(t, Definition{}, func(a, b any) bool {
		x, y := a.(Definition), b.(Definition)
		return x.Equal(&y)
	})
	eachField(t, Workload{}, func(a, b any) bool {
		x, y := a.(Workload), b.(Workload)
		return x.Equal(&y)
	})
	eachField(t, Endpoint{}, func(a, b any) bool { return a.(Endpoint).Equal(b.(Endpoint)) })
}

func eachField(t *testing.T, zero any, equal func(a, b any) bool) {
	typ := reflect.TypeOf(zero)
	require.True(t, equal(zero, zero), typ.Name())
	for i := range typ.NumField() {
		v := reflect.New(typ).Elem()
		set(t, v.Field(i))
		require.False(t, equal(zero, v.Interface()), "%s.%s", typ.Name(), typ.Field(i).Name)
		require.True(t, equal(v.Interface(), v.Interface()), "%s.%s", typ.Name(), typ.Field(i).Name)
	}
}

// set gives a value something that is not zero.
func set(t *testing.T, v reflect.Value) {
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParseAddr("192.0.2.1")))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1, 0)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(1)
	case reflect.Struct:
		set(t, v.Field(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("k").Convert(v.Type().Key()), reflect.Zero(v.Type().Elem()))
	default:
		t.Fatalf("no value for %s", v.Type())
	}
}
