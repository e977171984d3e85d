package webhooks

import (
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// configuration is one with two webhooks of ours and one of somebody else, as the
// API server sends it.
func configuration(t *testing.T) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	require.NoError(t, o.UnmarshalJSON([]byte(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingWebhookConfiguration",
		"metadata":{"name":"x","managedFields":[
		  {"manager":"helm","operation":"Update","fieldsV1":{"f:webhooks":{".":{},"k:{\"name\":\"a\"}":{"f:failurePolicy":{}},"v:3":{}}}},
		  {"manager":"cert-manager","operation":"Update","fieldsV1":{"f:webhooks":{"k:{\"name\":\"b\"}":{"f:clientConfig":{"f:caBundle":{}}}}}},
		  {"manager":"isthmus-webhooks","operation":"Update","fieldsV1":{"f:webhooks":{"k:{\"name\":\"a\"}":{"f:clientConfig":{"f:caBundle":{}}}}}},
		  {"manager":"else","operation":"Update","fieldsV1":{"f:webhooks":{"k:{\"name\":\"c\"}":{"f:clientConfig":{"f:caBundle":{}}}}}},
		  {"manager":"odd","operation":"Update","fieldsV1":{"f:webhooks":[]}}]},
		"webhooks":[{"name":"a","future":{"kept":7},"clientConfig":{"caBundle":"b2xk"},"failurePolicy":"Ignore"},
		  {"name":"b","clientConfig":{"caBundle":"dGhlaXJz"},"failurePolicy":"Ignore"},
		  {"name":"c","clientConfig":{"caBundle":"ZWxzZQ=="}}]}`)))
	return o
}

// Who keeps a bundle is read from the object as the API server would say it of an
// apply: others' webhooks, our own fields and bundles that are ours do not count.
func TestKeepers(t *testing.T) {
	o := configuration(t)
	both := map[string]bool{"a": true, "b": true}
	require.Equal(t, []string{"cert-manager"}, keepers(o, both, []byte("new")))
	require.Empty(t, keepers(o, both, []byte("theirs")))
	require.Empty(t, keepers(o, map[string]bool{"a": true}, []byte("new")))
	err := keptBy([]string{"cert-manager", "helm"})
	require.True(t, apierrors.HasStatusCause(err, metav1.CauseTypeFieldManagerConflict))
	require.Equal(t, []string{"cert-manager", "helm"}, conflicting(err))
}

// An update changes the two fields that are ours, and keeps what it does not know.
func TestSetFields(t *testing.T) {
	o := configuration(t)
	require.NoError(t, setFields(o, map[string]bool{"a": true, "b": true}, []byte("new"), []string{"b"}))
	list, _, err := unstructured.NestedSlice(o.Object, "webhooks")
	require.NoError(t, err)
	require.Equal(t, []any{
		map[string]any{"name": "a", "future": map[string]any{"kept": int64(7)}, "clientConfig": map[string]any{"caBundle": "bmV3"}, "failurePolicy": "Ignore"},
		map[string]any{"name": "b", "clientConfig": map[string]any{"caBundle": "bmV3"}, "failurePolicy": "Fail"},
		map[string]any{"name": "c", "clientConfig": map[string]any{"caBundle": "ZWxzZQ=="}},
	}, list)
}

// Only what we have applied is kept of the managed fields.
func TestHeldPolicy(t *testing.T) {
	fields := func(manager string, op metav1.ManagedFieldsOperationType) metav1.ManagedFieldsEntry {
		set := &metav1.FieldsV1{}
		set.SetRawBytes([]byte(`{"f:webhooks":{"k:{\"name\":\"a\"}":{"f:failurePolicy":{}}}}`))
		return metav1.ManagedFieldsEntry{Manager: manager, Operation: op, FieldsV1: set}
	}
	for _, tc := range []struct {
		entry metav1.ManagedFieldsEntry
		held  bool
	}{
		{fields(FieldManager, metav1.ManagedFieldsOperationApply), true},
		{fields(FieldManager, metav1.ManagedFieldsOperationUpdate), false},
		{fields("helm", metav1.ManagedFieldsOperationApply), false},
	} {
		o := &metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{tc.entry}}
		kept, err := keepOurs(o)
		require.NoError(t, err)
		require.Equal(t, tc.held, holdsPolicy(kept.(*metav1.ObjectMeta), "a"))
		require.False(t, holdsPolicy(o, "b"))
	}
}
