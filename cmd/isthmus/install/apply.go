package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// FieldManager is the name under which we write.
const FieldManager = "isthmus"

// Installer applies plans to a cluster.
type Installer struct {
	Target *Target
	// Out hears of every step.
	Out io.Writer
	// DryRun asks the API server what would happen, and changes nothing.
	DryRun bool
	// Force takes over objects and fields of others.
	Force bool
	// NoWait returns when everything is applied, without waiting until it works.
	NoWait bool
	// Timeout bounds the waiting; 0 is five minutes.
	Timeout time.Duration
	// Poll is the time between looks while waiting; 0 is a second.
	Poll time.Duration
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// say tells of progress; if nobody listens any more, the work goes on.
func (i *Installer) say(format string, args ...any) {
	if i.Out != nil {
		_, _ = fmt.Fprintf(i.Out, format+"\n", args...)
	}
}

// ErrPreflight says that a cluster is not fit; the findings have been told.
var ErrPreflight = errors.New("the cluster is not ready for this installation; nothing was changed")

// Install checks, applies and waits. It may be repeated: what is there already
// stays, what the plan does not have any more goes.
func (i *Installer) Install(ctx context.Context, p Plan) error {
	objects, err := p.Objects()
	if err != nil {
		return err
	}
	var crds []*unstructured.Unstructured
	if !p.SkipCRDs && slices.ContainsFunc(p.Installations, func(x Installation) bool { return x.Chart == manifests.Primary }) {
		if crds, err = manifests.CRDs(); err != nil {
			return err
		}
	}
	if err := i.preflight(ctx, p, objects, crds); err != nil {
		return err
	}
	if err := i.namespaces(ctx, p); err != nil {
		return err
	}
	if err := i.definitions(ctx, crds); err != nil {
		return err
	}
	// What sends users' requests to the control plane comes when it answers, and
	// gateways, whose proxies it injects, after that.
	for _, phase := range phases(objects) {
		if err := i.applyAll(ctx, phase); err != nil {
			return err
		}
		if err := i.wait(ctx, phase); err != nil {
			return err
		}
	}
	return i.prune(ctx, p, objects)
}

func (i *Installer) preflight(ctx context.Context, p Plan, objects, crds []*unstructured.Unstructured) error {
	now := i.Now
	if now == nil {
		now = time.Now
	}
	findings, err := Preflight(ctx, i.Target, objects, append(places(p), crds...), now, i.Force)
	for _, f := range findings {
		i.say("%-5s %-12s %s", f.Level, f.Check, f.Text)
	}
	if err != nil {
		return err
	}
	if len(findings.Failed()) > 0 {
		return fmt.Errorf("preflight of cluster %s: %w", i.Target.Name, ErrPreflight)
	}
	return nil
}

// places are the namespaces of a plan, with the network of the cluster where it
// is looked for.
func places(p Plan) []*unstructured.Unstructured {
	var out []*unstructured.Unstructured
	for _, x := range p.Installations {
		if slices.ContainsFunc(out, func(o *unstructured.Unstructured) bool { return o.GetName() == x.Namespace }) {
			continue
		}
		ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace"}}
		ns.SetName(x.Namespace)
		if network := manifests.Text(x.Values, "global.network"); network != "" && x.Chart != manifests.EastWest {
			ns.SetLabels(map[string]string{labelNetwork: network})
		}
		out = append(out, ns)
	}
	return out
}

// namespaces makes the namespaces that are missing, and labels those that are
// not labelled yet. They are users': uninstalling leaves them.
func (i *Installer) namespaces(ctx context.Context, p Plan) error {
	for _, ns := range places(p) {
		have, err := i.Target.get(ctx, ns)
		if err != nil {
			return err
		}
		network := ns.GetLabels()[labelNetwork]
		if have != nil && (network == "" || have.GetLabels()[labelNetwork] == network) {
			continue
		}
		if err := i.apply(ctx, ns); err != nil {
			return err
		}
	}
	return nil
}

// definitions makes the definitions that are missing, and waits until the API
// server serves them.
func (i *Installer) definitions(ctx context.Context, crds []*unstructured.Unstructured) error {
	made := 0
	for _, o := range crds {
		have, err := i.Target.get(ctx, o)
		if err != nil {
			return err
		}
		if have != nil {
			continue
		}
		if _, err := i.write(ctx, o); err != nil {
			return err
		}
		made++
	}
	if made > 0 {
		i.say("%-10s %d definitions of custom resources", i.verb("created"), made)
	}
	if made == 0 || i.DryRun {
		return nil
	}
	for _, o := range crds {
		if err := i.until(ctx, func(ctx context.Context) (string, error) { return i.served(ctx, o) }); err != nil {
			return err
		}
	}
	return nil
}

// served says that a definition is not in force yet, "" if it is. The API server
// takes objects a moment after it has established the definition.
func (i *Installer) served(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	not := "definition " + o.GetName() + " is not served yet"
	have, err := i.Target.get(ctx, o)
	if err != nil || have == nil || condition(have, "Established") != "True" {
		return not, err
	}
	group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(o.Object, "spec", "names", "plural")
	versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions")
	for _, v := range versions {
		version, _ := v.(map[string]any)
		if version["served"] != true {
			continue
		}
		list, err := i.Target.client.Discovery().ServerResourcesForGroupVersion(group + "/" + fmt.Sprint(version["name"]))
		switch {
		case apierrors.IsNotFound(err):
			return not, nil
		case err != nil:
			return "", fmt.Errorf("ask cluster %s for the kinds of group %s: %w", i.Target.Name, group, err)
		case !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == plural }):
			return not, nil
		}
	}
	return "", nil
}

// phases parts what makes the control plane run from what makes others call it,
// and from what it must be called for.
func phases(objects []*unstructured.Unstructured) [3][]*unstructured.Unstructured {
	var out [3][]*unstructured.Unstructured
	for _, o := range objects {
		phase := 0
		switch o.GetKind() {
		case "ValidatingWebhookConfiguration", kindInjection:
			phase = 1
		case "Deployment":
			if !isControlPlane(o) {
				phase = 2
			}
		case "Gateway":
			phase = 2
		}
		out[phase] = append(out[phase], o)
	}
	return out
}

func isControlPlane(o *unstructured.Unstructured) bool {
	return o.GetKind() == "Deployment" && o.GetLabels()["app"] == "istiod"
}

func (i *Installer) applyAll(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		if err := i.apply(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// apply writes one object and says what that did.
func (i *Installer) apply(ctx context.Context, o *unstructured.Unstructured) error {
	have, err := i.Target.get(ctx, o)
	if err != nil {
		return err
	}
	if err := i.cede(ctx, have, o); err != nil {
		return err
	}
	got, err := i.write(ctx, enforced(o, have))
	if err != nil {
		return err
	}
	switch {
	case have == nil:
		i.say("%-10s %s", i.verb("created"), Describe(o))
	case got.GetResourceVersion() == have.GetResourceVersion():
		i.say("%-10s %s", "unchanged", Describe(o))
	default:
		i.say("%-10s %s", i.verb("changed"), Describe(o))
	}
	return nil
}

// enforced keeps the policy of validation that the control plane has put in force
// since: installing again must not loosen it.
func enforced(o, have *unstructured.Unstructured) *unstructured.Unstructured {
	if have == nil || o.GetKind() != "ValidatingWebhookConfiguration" {
		return o
	}
	fail := map[any]bool{}
	list, _, _ := unstructured.NestedSlice(have.Object, "webhooks")
	for _, x := range list {
		if w, ok := x.(map[string]any); ok && w["failurePolicy"] == "Fail" {
			fail[w["name"]] = true
		}
	}
	o = o.DeepCopy()
	list, _, _ = unstructured.NestedSlice(o.Object, "webhooks")
	for _, x := range list {
		if w, ok := x.(map[string]any); ok && fail[w["name"]] {
			w["failurePolicy"] = "Fail"
		}
	}
	_ = unstructured.SetNestedSlice(o.Object, list, "webhooks") // what was read can be written
	return o
}

func (i *Installer) verb(did string) string {
	if i.DryRun {
		return "would be " + did
	}
	return did
}

// write applies one object.
func (i *Installer) write(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	options := metav1.ApplyOptions{FieldManager: FieldManager, Force: i.Force}
	if i.DryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	got, err := i.Target.api(o).Apply(ctx, o.GetName(), o, options)
	if err != nil && i.DryRun && isMissingPlace(err) {
		// The namespace or the kind would be there by now.
		return o, nil
	}
	if err != nil {
		return nil, i.Target.explain(err, "apply", "patch and create", o)
	}
	return got, nil
}

// prune deletes what earlier runs installed under the same release and the plan
// does not have any more.
func (i *Installer) prune(ctx context.Context, p Plan, objects []*unstructured.Unstructured) error {
	wanted := map[string]bool{}
	for _, o := range objects {
		wanted[Describe(o)] = true
	}
	for _, x := range p.Installations {
		have, err := i.Target.owned(ctx, x.Release, x.Namespace)
		if err != nil {
			return err
		}
		for _, o := range have {
			if !wanted[Describe(o)] {
				if err := i.remove(ctx, o); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
