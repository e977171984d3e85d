package install

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/rest"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// Bounds of preflight.
const (
	// oldestKubernetes has everything that is installed in its stable form.
	oldestKubernetes = "1.25.0"
	// skewWarn is the difference of clocks from which on tokens and certificates
	// become unreliable.
	skewWarn = 30 * time.Second
	// askers ask for permissions at the same time.
	askers = 8
)

const (
	kindDefinition = "CustomResourceDefinition"
	kindInjection  = "MutatingWebhookConfiguration"
)

// Level says what a finding means.
type Level string

// Levels.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is the result of one check.
type Finding struct {
	Level Level  `json:"level"`
	Check string `json:"check"`
	Text  string `json:"text"`
}

// Findings are the results of all checks.
type Findings []Finding

func (f *Findings) add(l Level, check, format string, args ...any) {
	*f = append(*f, Finding{l, check, fmt.Sprintf(format, args...)})
}

// Failed lists the findings that forbid to go on.
func (f Findings) Failed() Findings {
	return slices.DeleteFunc(slices.Clone(f), func(x Finding) bool { return x.Level != Fail })
}

// Preflight looks whether objects can be installed into a cluster: it reads and
// asks, and writes nothing. The error says that it could not look at all; what
// it found is in the findings, each rule that is missing by its name.
//
// shared are objects that many use, namespaces and definitions: they are made if
// they are missing, and whose they are does not matter.
//
// now is the clock of this machine. With force, objects of others are a warning.
func Preflight(ctx context.Context, t *Target, objects, shared []*unstructured.Unstructured, now func() time.Time, force bool) (Findings, error) {
	var f Findings
	if err := t.checkServer(ctx, &f, now); err != nil {
		return f, err
	}
	for _, check := range []func(context.Context, *Findings) error{
		func(ctx context.Context, f *Findings) error { return t.checkRights(ctx, f, objects, shared) },
		func(ctx context.Context, f *Findings) error { return t.checkDefinitions(ctx, f, shared) },
		func(ctx context.Context, f *Findings) error { return t.checkNames(ctx, f, objects, force) },
		func(ctx context.Context, f *Findings) error { return t.checkInjection(ctx, f, objects) },
	} {
		if err := check(ctx, &f); err != nil {
			return f, err
		}
	}
	return f, nil
}

// checkServer asks for the version, and looks at the clock in the answer.
func (t *Target) checkServer(ctx context.Context, f *Findings, now func() time.Time) error {
	client, err := rest.HTTPClientFor(t.REST)
	if err != nil {
		return fmt.Errorf("reach cluster %s: %w", t.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(t.REST.Host, "/")+"/version", nil)
	if err != nil {
		return fmt.Errorf("reach cluster %s: %w", t.Name, err)
	}
	before := now()
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("reach cluster %s at %s: %w", t.Name, t.REST.Host, err)
	}
	_ = answer.Body.Close()
	info, err := t.client.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("ask cluster %s for its version: %w", t.Name, err)
	}
	f.add(OK, "API server", "cluster %s answers at %s", t.Name, t.REST.Host)
	have, err := version.ParseGeneric(info.GitVersion)
	switch {
	case err != nil:
		f.add(Warn, "version", "Kubernetes %q is no version that can be compared; %s or later is needed", info.GitVersion, oldestKubernetes)
	case have.LessThan(version.MustParseGeneric(oldestKubernetes)):
		f.add(Fail, "version", "Kubernetes %s is too old: %s or later is needed", info.GitVersion, oldestKubernetes)
	default:
		f.add(OK, "version", "Kubernetes %s", info.GitVersion)
	}
	checkClock(f, answer.Header.Get("Date"), before, now())
	return nil
}

// checkClock compares clocks. The header has whole seconds and was written
// somewhere between before and after.
func checkClock(f *Findings, date string, before, after time.Time) {
	at, err := http.ParseTime(date)
	if err != nil {
		f.add(Warn, "clock", "the API server's answer has no date: clocks could not be compared")
		return
	}
	skew := time.Duration(0)
	if early := before.Sub(at.Add(time.Second)); early > 0 {
		skew = early
	}
	if late := at.Sub(after); late > 0 {
		skew = -late
	}
	if skew.Abs() > skewWarn {
		f.add(Warn, "clock", "the API server's clock and this machine's differ by %s: tokens and certificates may count as ended or as not yet valid; set the one that is wrong", skew.Abs().Round(time.Second))
		return
	}
	f.add(OK, "clock", "differs by less than %s", skewWarn)
}

// right is one thing that must be allowed.
type right struct {
	verb, group, resource, subresource, name, namespace string
}

func (r right) String() string {
	resource := r.resource
	if r.group != "" {
		resource += "." + r.group
	}
	if r.subresource != "" {
		resource += "/" + r.subresource
	}
	if r.name != "" {
		resource += " " + r.name
	}
	if r.namespace != "" {
		return r.verb + " " + resource + " in namespace " + r.namespace
	}
	return r.verb + " " + resource
}

// checkRights asks the API server for every right that installing needs.
func (t *Target) checkRights(ctx context.Context, f *Findings, objects, shared []*unstructured.Unstructured) error {
	rights := neededRights(append(t.wanting(ctx, shared), objects...))
	missing, err := t.ask(ctx, rights)
	if err != nil {
		return err
	}
	for _, r := range missing {
		f.add(Fail, "rights", "cluster %s: you may not %s", t.Name, r)
	}
	granted, err := t.missingGrants(ctx, objects)
	if err != nil {
		return err
	}
	for _, g := range granted {
		f.add(Fail, "rights", "cluster %s: %s", t.Name, g)
	}
	if len(missing)+len(granted) == 0 {
		f.add(OK, "rights", "all %d rules that installing needs are granted", len(rights))
	}
	return nil
}

// wanting are the shared objects that have to be written: what is there as it
// should be needs no right.
func (t *Target) wanting(ctx context.Context, shared []*unstructured.Unstructured) []*unstructured.Unstructured {
	return slices.DeleteFunc(slices.Clone(shared), func(o *unstructured.Unstructured) bool {
		have, err := t.get(ctx, o)
		if err != nil || have == nil {
			return false // what cannot be read is told with the right that is missing
		}
		for key, value := range o.GetLabels() {
			if o.GetKind() != kindDefinition && have.GetLabels()[key] != value {
				return false
			}
		}
		return true
	})
}

// neededRights are those with which objects are applied and found again.
func neededRights(objects []*unstructured.Unstructured) []right {
	var out []right
	seen := map[right]bool{}
	for _, o := range objects {
		gvr := resourceOf(o)
		for _, verb := range []string{"get", "list", "create", "patch", "delete"} {
			r := right{verb: verb, group: gvr.Group, resource: gvr.Resource, namespace: o.GetNamespace()}
			if (o.GetKind() == kindDefinition || o.GetKind() == "Namespace") && (verb == "list" || verb == "delete") {
				continue // never deleted
			}
			if !seen[r] {
				seen[r] = true
				out = append(out, r)
			}
		}
	}
	return out
}

// missingGrants finds the rules that we would give to the control plane without
// having them: the API server refuses such roles, unless one may escalate.
func (t *Target) missingGrants(ctx context.Context, objects []*unstructured.Unstructured) ([]string, error) {
	var out []string
	for _, o := range objects {
		if o.GetKind() != "ClusterRole" && o.GetKind() != "Role" {
			continue
		}
		gvr := resourceOf(o)
		none, err := t.ask(ctx, []right{{verb: "escalate", group: gvr.Group, resource: gvr.Resource, namespace: o.GetNamespace()}})
		if err != nil {
			return nil, err
		}
		if len(none) == 0 {
			continue
		}
		var role rbacv1.ClusterRole // the rules of a Role look the same
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role); err != nil {
			return nil, fmt.Errorf("read %s: %w", Describe(o), err)
		}
		missing, err := t.ask(ctx, granted(role.Rules, o.GetNamespace()))
		if err != nil {
			return nil, err
		}
		for _, r := range missing {
			out = append(out, fmt.Sprintf("you may not %s, so you cannot grant it in %s", r, Describe(o)))
		}
	}
	return out, nil
}

// granted takes rules apart.
func granted(rules []rbacv1.PolicyRule, namespace string) []right {
	var out []right
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				resource, sub, _ := strings.Cut(resource, "/")
				for _, verb := range rule.Verbs {
					for _, name := range names {
						out = append(out, right{verb, group, resource, sub, name, namespace})
					}
				}
			}
		}
	}
	return out
}

// ask returns those rights that are not granted, in their order.
func (t *Target) ask(ctx context.Context, rights []right) ([]right, error) {
	refused := make([]bool, len(rights))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(askers)
	var once sync.Mutex
	for i, r := range rights {
		g.Go(func() error {
			answer, err := t.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: r.verb, Group: r.group, Resource: r.resource, Subresource: r.subresource, Name: r.name, Namespace: r.namespace}},
			}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("ask cluster %s whether you may %s: %w", t.Name, r, err)
			}
			once.Lock()
			refused[i] = !answer.Status.Allowed
			once.Unlock()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []right
	for i, r := range rights {
		if refused[i] {
			out = append(out, r)
		}
	}
	return out, nil
}

// checkDefinitions counts the definitions that are there. They are never
// changed: an installation of Istio's, or a newer one of ours, has put them
// there.
func (t *Target) checkDefinitions(ctx context.Context, f *Findings, shared []*unstructured.Unstructured) error {
	crds := slices.DeleteFunc(slices.Clone(shared), func(o *unstructured.Unstructured) bool { return o.GetKind() != kindDefinition })
	if len(crds) == 0 {
		return nil
	}
	var missing []string
	for _, o := range crds {
		have, err := t.get(ctx, o)
		if refusedAlready(err) {
			return nil // named among the rights
		}
		if err != nil {
			return err
		}
		if have == nil {
			missing = append(missing, o.GetName())
		}
	}
	if len(missing) == 0 {
		f.add(OK, "definitions", "all %d definitions of custom resources are there and stay as they are", len(crds))
		return nil
	}
	f.add(OK, "definitions", "%d of %d definitions of custom resources are there and stay as they are, %d are made", len(crds)-len(missing), len(crds), len(missing))
	return nil
}

// checkNames looks for objects of our names that are somebody else's.
func (t *Target) checkNames(ctx context.Context, f *Findings, objects []*unstructured.Unstructured, force bool) error {
	level, found := Fail, 0
	if force {
		level = Warn
	}
	for _, o := range objects {
		have, err := t.get(ctx, o)
		if refusedAlready(err) {
			continue
		}
		if err != nil {
			return err
		}
		if have == nil || ours(have, releaseOf(o)) {
			continue
		}
		found++
		whose := "written by " + strings.Join(managers(have), ", ")
		if have.GetLabels()[manifests.ManagedByLabel] == manifests.ManagedBy {
			whose = "of release " + releaseOf(have)
		}
		f.add(level, "names", "cluster %s: %s is there already and is not ours (%s): install a revision of its own with --revision, or take it over with --force",
			t.Name, Describe(o), whose)
	}
	if found == 0 {
		f.add(OK, "names", "none of %d objects is somebody else's", len(objects))
	}
	return nil
}

// refusedAlready: what may not be read has been named among the rights.
func refusedAlready(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && apierrors.IsForbidden(err)
}
