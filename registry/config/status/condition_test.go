package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/quick"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

func at(second int64) time.Time { return time.Unix(second, 0) }

// TestMerge: one condition of ours among those of others, which stay where they
// are; its time is that of the last change of its status.
func TestMerge(t *testing.T) {
	t.Parallel()
	healthy := map[string]any{"type": "Healthy", "status": "True"}
	reconciled := map[string]any{"type": "Reconciled", "status": "False", "observedGeneration": "3"}
	ours := func(reason, message, since string, generation any) map[string]any {
		return map[string]any{"type": ConditionType, "status": "False", "reason": reason, "message": message, "lastTransitionTime": since, "observedGeneration": generation}
	}
	const then, now = "1970-01-01T00:00:01Z", "1970-01-01T00:00:09Z"
	want := &Condition{Reason: ReasonRefused, Message: "m", Generation: 3}
	for name, tc := range map[string]struct {
		have    []any
		want    *Condition
		merged  []any
		changed bool
	}{
		"none, none wanted":      {nil, nil, nil, false},
		"first":                  {nil, want, []any{ours(ReasonRefused, "m", now, int64(3))}, true},
		"beside others":          {[]any{healthy, "odd"}, want, []any{healthy, "odd", ours(ReasonRefused, "m", now, int64(3))}, true},
		"same":                   {[]any{healthy, ours(ReasonRefused, "m", then, int64(3)), reconciled}, want, []any{healthy, ours(ReasonRefused, "m", then, int64(3)), reconciled}, false},
		"same, as protobuf says": {[]any{ours(ReasonRefused, "m", then, "3")}, want, []any{ours(ReasonRefused, "m", then, int64(3))}, false},
		"other generation":       {[]any{ours(ReasonRefused, "m", then, int64(2))}, want, []any{ours(ReasonRefused, "m", then, int64(3))}, true},
		"other reason":           {[]any{ours(ReasonPartsLeftOut, "m", then, int64(3)), healthy}, want, []any{ours(ReasonRefused, "m", then, int64(3)), healthy}, true},
		"gone":                   {[]any{healthy, ours(ReasonRefused, "m", then, int64(3)), reconciled}, nil, []any{healthy, reconciled}, true},
		"nothing of ours":        {[]any{healthy, reconciled}, nil, []any{healthy, reconciled}, false},
	} {
		merged, changed := Merge(tc.have, ConditionType, tc.want, at(9))
		require.Equal(t, tc.merged, merged, name)
		require.Equal(t, tc.changed, changed, name)
	}
	other := TypeOf("canary")
	require.Equal(t, "canary.isthmus.io/Accepted", other)
	require.Equal(t, ConditionType, TypeOf("default"))
	merged, _ := Merge([]any{ours(ReasonRefused, "m", then, int64(3))}, other, want, at(9))
	require.Len(t, merged, 2, "another revision has its own")
}

// TestMergeTwice: merging again changes nothing, and what is not ours stays, for
// any list of conditions.
func TestMergeTwice(t *testing.T) {
	t.Parallel()
	types := []string{"Healthy", "Reconciled", ConditionType, "canary." + ConditionType, ""}
	check := func(list []uint8, reason, message string, generation int64, none bool) bool {
		var have []any
		for _, x := range list {
			c := map[string]any{"type": types[int(x)%len(types)], "status": []any{"True", "False", nil}[int(x)%3], "message": fmt.Sprint(x), "extra": map[string]any{"n": int64(x)}}
			have = append(have, c)
		}
		before, err := json.Marshal(have)
		require.NoError(t, err)
		want := &Condition{Reason: reason, Message: message, Generation: generation}
		if none {
			want = nil
		}
		once, changed := Merge(have, ConditionType, want, at(1))
		twice, again := Merge(once, ConditionType, want, at(2))
		after, err := json.Marshal(have)
		require.NoError(t, err)
		theirs := func(in []any) string {
			return fmt.Sprint(slices.DeleteFunc(slices.Clone(in), func(x any) bool { return x.(map[string]any)["type"] == ConditionType }))
		}
		return !again && reflect.DeepEqual(once, twice) && string(before) == string(after) && theirs(have) == theirs(once) &&
			(changed || reflect.DeepEqual(have, once))
	}
	require.NoError(t, quick.Check(check, nil))
}

// TestMessages: every fault is told with its field, in bounds, as valid text.
func TestMessages(t *testing.T) {
	t.Parallel()
	k, ok := config.Lookup("networking.istio.io/v1", "DestinationRule")
	require.True(t, ok)
	_, err := config.Decode("east", k, []byte(`{"metadata":{"name":"x","namespace":"shop"},"spec":{"host":"","subsets":[{"name":""},{"name":""}]}}`))
	require.Error(t, err)
	c := refusal(err, 4)
	require.Equal(t, ReasonRefused, c.Reason)
	require.Equal(t, int64(4), c.Generation)
	require.Contains(t, c.Message, "spec.host: ")
	require.Contains(t, c.Message, "spec.subsets[0].name: ")

	require.Contains(t, refusal(errors.New("no object at all"), 1).Message, "no object at all")

	var parts []registry.Part
	for i := range 25 {
		parts = append(parts, registry.Part{Field: fmt.Sprintf("spec.configPatches[%d]", i), Message: "bad\n\xff" + strings.Repeat("ä", 1000)})
	}
	c = partly(parts, 2)
	require.Equal(t, ReasonPartsLeftOut, c.Reason)
	require.True(t, utf8.ValidString(c.Message))
	require.NotContains(t, c.Message, "\n")
	require.Contains(t, c.Message, "spec.configPatches[9]: bad ?")
	require.NotContains(t, c.Message, "spec.configPatches[10]")
	require.True(t, strings.HasSuffix(c.Message, "; and 15 more"))
	require.Less(t, utf8.RuneCountInString(c.Message), maxParts*(maxPart+10)+100)
}
