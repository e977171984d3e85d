package webhooks

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestConflictingManagers(t *testing.T) {
	conflict := func(messages ...string) error {
		var causes []metav1.StatusCause
		for _, m := range messages {
			causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeFieldManagerConflict, Message: m})
		}
		return apierrors.NewApplyConflict(causes, "conflict")
	}
	require.Equal(t, []string{"helm", "cert-manager"}, conflicting(conflict(`conflict with "helm" using v1`, `conflict with "cert-manager"`, `conflict with "helm"`)))
	require.Equal(t, []string{"another manager"}, conflicting(conflict("something new")))
	require.Equal(t, []string{"another manager"}, conflicting(errors.New("no status")))
}

// Names of Leases differ by revision, so that revisions do not wait for one
// another.
func TestLeaseName(t *testing.T) {
	require.Equal(t, []string{Lease, Lease, Lease + "-canary"}, []string{LeaseName(""), LeaseName("default"), LeaseName("canary")})
}

// The object that is tried is one that the webhook is asked about.
func TestLabelsFor(t *testing.T) {
	p, err := New(Config{Client: fake.NewClientset(), Bundle: func() []byte { return nil }, SystemNamespace: "istio-system", Replica: "a", Revision: "canary"})
	require.NoError(t, err)
	of := func(key string, op metav1.LabelSelectorOperator, values ...string) *admissionv1.ValidatingWebhook {
		return &admissionv1.ValidatingWebhook{Name: "x", ObjectSelector: &metav1.LabelSelector{
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: op, Values: values}}}}
	}
	for _, c := range []struct {
		hook *admissionv1.ValidatingWebhook
		want map[string]string
	}{
		{&admissionv1.ValidatingWebhook{}, nil},
		{of(RevisionLabel, metav1.LabelSelectorOpDoesNotExist), nil},
		{of(RevisionLabel, metav1.LabelSelectorOpIn, "canary"), map[string]string{RevisionLabel: "canary"}},
	} {
		got, err := p.labelsFor(c.hook)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	_, err = p.labelsFor(of(RevisionLabel, metav1.LabelSelectorOpIn, "other"))
	require.ErrorContains(t, err, "selects objects neither by no label nor by istio.io/rev=canary")
	_, err = p.labelsFor(of(RevisionLabel, "Never"))
	require.Error(t, err)
	_, err = New(Config{})
	require.ErrorContains(t, err, "are required")
}
