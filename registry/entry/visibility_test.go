package entry

import (
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	public  = meshconfig.ServiceEntryVisibility_PUBLIC
	private = meshconfig.ServiceEntryVisibility_NAMESPACE
	hidden  = meshconfig.ServiceEntryVisibility_NONE
)

func visibility(otherwise meshconfig.ServiceEntryVisibility_Visibility, list ...*meshconfig.ServiceEntryVisibility_Policy) *meshconfig.ServiceEntryVisibility {
	return &meshconfig.ServiceEntryVisibility{ApplyToSidecars: true, DefaultVisibility: otherwise, Policies: list}
}

func namespaceRule(labels map[string]string) *meshconfig.ServiceEntryVisibility_MatchRule {
	return &meshconfig.ServiceEntryVisibility_MatchRule{Matcher: &meshconfig.ServiceEntryVisibility_MatchRule_NamespaceSelector{
		NamespaceSelector: &meshconfig.LabelSelector{MatchLabels: labels}}}
}

// forNamespaces is a policy for namespaces that have all the labels with "true".
func forNamespaces(to meshconfig.ServiceEntryVisibility_Visibility, labels ...string) *meshconfig.ServiceEntryVisibility_Policy {
	p := &meshconfig.ServiceEntryVisibility_Policy{Visibility: to}
	for _, l := range labels {
		p.MatchingRules = append(p.MatchingRules, namespaceRule(map[string]string{l: "true"}))
	}
	return p
}

func TestVisibilityOf(t *testing.T) {
	const unsaid = meshconfig.ServiceEntryVisibility_VISIBILITY_UNSPECIFIED
	trusted := map[string]string{"trusted": "true"}
	byName := &meshconfig.ServiceEntryVisibility_Policy{Visibility: public, MatchingRules: []*meshconfig.ServiceEntryVisibility_MatchRule{
		namespaceRule(map[string]string{"kubernetes.io/metadata.name": "shop"})}}
	unknown := &meshconfig.ServiceEntryVisibility_Policy{Visibility: public, MatchingRules: []*meshconfig.ServiceEntryVisibility_MatchRule{{}}}
	for name, tt := range map[string]struct {
		policy *meshconfig.ServiceEntryVisibility
		labels map[string]string
		want   meshconfig.ServiceEntryVisibility_Visibility
	}{
		"nothing set":                                  {nil, nil, public},
		"default unsaid":                               {visibility(unsaid), nil, public},
		"default":                                      {visibility(private), trusted, private},
		"policy before default":                        {visibility(private, forNamespaces(public, "trusted")), trusted, public},
		"policy for others":                            {visibility(private, forNamespaces(public, "trusted")), nil, private},
		"all rules must take it":                       {visibility(private, forNamespaces(public, "trusted", "old")), trusted, private},
		"the first policy counts":                      {visibility(private, forNamespaces(hidden, "trusted"), forNamespaces(public)), trusted, hidden},
		"a policy without rules":                       {visibility(private, forNamespaces(hidden, "trusted"), forNamespaces(public)), nil, public},
		"a policy that says nothing":                   {visibility(private, forNamespaces(unsaid)), nil, public},
		"a rule that is not known":                     {visibility(private, unknown), trusted, private},
		"the name of a namespace that nobody labelled": {visibility(private, byName), nil, public},
		"the name that the label says":                 {visibility(private, byName), map[string]string{"kubernetes.io/metadata.name": "other"}, private},
	} {
		require.Equal(t, tt.want, visibilityOf(tt.policy, "shop", tt.labels), name)
	}
}

// TestVisibility: what the mesh lets be seen of an entry follows settings and
// labels, and an entry that may be seen again is there as it was.
func TestVisibility(t *testing.T) {
	x := NewIndex(domain)
	o := serviceEntry("e", 1, &networking.ServiceEntry{Hosts: []string{"b.example"}, Ports: ports("http:80"), ExportTo: []string{"*"},
		WorkloadSelector: &networking.WorkloadSelector{Labels: map[string]string{"app": "a"}}})
	x.SetEntry(o.Key, o)
	x.Flush(none)
	k := mesh.ServiceKey{Namespace: "shop", Hostname: "b.example"}
	shown := x.Derived(k)
	require.False(t, shown.Definition.Private)
	flushed := func() []mesh.ServiceKey { return x.Flush(none) }

	x.SetVisibility(&meshconfig.ServiceEntryVisibility{DefaultVisibility: hidden})
	require.Empty(t, flushed(), "not for sidecars")
	x.SetVisibility(visibility(hidden, forNamespaces(private, "trusted")))
	require.Equal(t, []mesh.ServiceKey{k}, flushed())
	require.Nil(t, x.Derived(k))
	x.SetNamespace("shop", map[string]string{"trusted": "true"})
	require.Equal(t, []mesh.ServiceKey{k}, flushed())
	require.True(t, x.Derived(k).Definition.Private)
	svc := &mesh.Service{Key: k, Lead: x.Derived(k).Definition}
	require.True(t, svc.VisibleTo("shop", nil))
	require.False(t, svc.VisibleTo("other", nil), "whatever exportTo says")
	x.SetNamespace("shop", map[string]string{"trusted": "true", "more": "1"})
	require.Empty(t, flushed(), "a label that nobody asks for")
	x.SetVisibility(nil)
	require.Equal(t, []mesh.ServiceKey{k}, flushed())
	require.Equal(t, shown, x.Derived(k))
}
