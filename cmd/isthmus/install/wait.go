package install

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// wait returns when every Deployment among the objects is rolled out.
func (i *Installer) wait(ctx context.Context, objects []*unstructured.Unstructured) error {
	if i.NoWait || i.DryRun {
		return nil
	}
	for _, o := range objects {
		if o.GetKind() != "Deployment" {
			continue
		}
		if err := i.until(ctx, func(ctx context.Context) (string, error) { return i.rollout(ctx, o) }); err != nil {
			return err
		}
		i.say("%-10s %s", "ready", Describe(o))
	}
	return nil
}

// until looks until there is nothing to wait for any more; what it waits for is
// told when it changes.
func (i *Installer) until(ctx context.Context, look func(context.Context) (waitingFor string, err error)) error {
	timeout, poll := i.Timeout, i.Poll
	if timeout <= 0 {
		timeout = 5 * time.Minute
	}
	if poll <= 0 {
		poll = time.Second
	}
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	last := ""
	for {
		why, err := look(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return errInterrupted
		case err != nil:
			return err
		case why == "":
			return nil
		case why != last:
			i.say("%-10s %s", "waiting", why)
			last = why
		}
		select {
		case <-ctx.Done():
			return errInterrupted
		case <-limit.C:
			return fmt.Errorf("wait in cluster %s: after %s still: %s; what was applied stays, and the command can be repeated", i.Target.Name, timeout, why)
		case <-tick.C:
		}
	}
}

// rollout says what a Deployment is waiting for, "" if it is rolled out.
func (i *Installer) rollout(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	have, err := i.Target.get(ctx, o)
	if err != nil {
		return "", err
	}
	if have == nil {
		return "", fmt.Errorf("wait in cluster %s: %s is gone", i.Target.Name, Describe(o))
	}
	var d appsv1.Deployment
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(have.Object, &d); err != nil {
		return "", fmt.Errorf("read %s in cluster %s: %w", Describe(o), i.Target.Name, err)
	}
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	if s.ObservedGeneration >= d.Generation && s.UpdatedReplicas >= want && s.AvailableReplicas >= want && s.Replicas == s.UpdatedReplicas {
		return "", nil
	}
	why := fmt.Sprintf("%s: %d of %d replicas available", Describe(o), min(s.AvailableReplicas, s.UpdatedReplicas), want)
	if reason := i.podTrouble(ctx, &d); reason != "" {
		why += ": " + reason
	}
	return why, nil
}

// podTrouble says why pods do not start, "" if there is nothing to say. It only
// explains: not being allowed to look is no error.
func (i *Installer) podTrouble(ctx context.Context, d *appsv1.Deployment) string {
	pods, err := i.Target.client.CoreV1().Pods(d.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return ""
	}
	for n := range pods.Items {
		p := &pods.Items[n]
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if w := c.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" && w.Reason != "ContainerCreating" {
				return fmt.Sprintf("pod %s: %s %s", p.Name, w.Reason, strings.TrimSpace(w.Message))
			}
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				return fmt.Sprintf("pod %s: %s", p.Name, c.Message)
			}
		}
	}
	return ""
}

// condition returns the status of a condition, "" if there is none.
func condition(o *unstructured.Unstructured, kind string) string {
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, x := range list {
		if c, ok := x.(map[string]any); ok && c["type"] == kind {
			status, _ := c["status"].(string)
			return status
		}
	}
	return ""
}

// isMissingPlace: a dry run finds no namespace, or no kind, that a real run would
// have made before.
func isMissingPlace(err error) bool { return apierrors.IsNotFound(err) }
