package inject

import (
	"encoding/json"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// asIn returns overrides with the values that a pod has now. What users change
// in a pod, or a file with one, after it was injected counts; what was noted says
// only which settings are theirs.
func (o overrides) asIn(pod *corev1.Pod, forced map[string]string) (overrides, error) {
	var out overrides
	for _, list := range []struct {
		from []corev1.Container
		to   *[]corev1.Container
	}{{o.Containers, &out.Containers}, {o.InitContainers, &out.InitContainers}} {
		for i := range list.from {
			c, err := containerAsIn(&list.from[i], pod)
			if err != nil {
				return overrides{}, fmt.Errorf("annotation %s: %w", annotationOverrides, err)
			}
			keepForced(&list.from[i], c, forced)
			*list.to = append(*list.to, *c)
		}
	}
	return out, nil
}

func containerAsIn(noted *corev1.Container, pod *corev1.Pod) (*corev1.Container, error) {
	now := find(pod.Spec.Containers, noted.Name)
	if now == nil {
		now = find(pod.Spec.InitContainers, noted.Name)
	}
	if now == nil {
		return noted, nil
	}
	trees := make([]map[string]any, 2)
	for i, c := range []*corev1.Container{noted, now} {
		raw, err := json.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("encode container %s: %w", noted.Name, err)
		}
		if err := json.Unmarshal(raw, &trees[i]); err != nil {
			return nil, fmt.Errorf("decode container %s: %w", noted.Name, err)
		}
	}
	out := &corev1.Container{}
	if err := convert(projectMap(trees[0], trees[1]), out); err != nil {
		return nil, fmt.Errorf("decode container %s: %w", noted.Name, err)
	}
	keepPortNames(noted, out)
	return out, nil
}

// keepForced takes what injection itself has put in the place of the user's: it
// is no change of theirs.
func keepForced(noted, now *corev1.Container, forced map[string]string) {
	for i := range now.Env {
		e := &now.Env[i]
		if _, ours := forced[e.Name]; !ours && e.Name != envProbers && e.Name != envPrometheus {
			continue
		}
		for j := range noted.Env {
			if noted.Env[j].Name == e.Name {
				*e = noted.Env[j]
			}
		}
	}
	if was, is := noted.SecurityContext, now.SecurityContext; was != nil && is != nil && is.RunAsUser != nil && *is.RunAsUser == 0 {
		is.RunAsUser = was.RunAsUser // transparent proxying needs root
	}
}

// keepPortNames gives probes their port by name again where they had one: they
// were restored from a note that has numbers.
func keepPortNames(noted, now *corev1.Container) {
	named := func(was, is *intstr.IntOrString) {
		if n, ok := numberOf(*was, noted); ok && was.Type == intstr.String && is.Type == intstr.Int && int(is.IntVal) == n {
			*is = *was
		}
	}
	before := handlers(noted)
	for kind, h := range handlers(now) {
		old := before[kind]
		if old.HTTPGet != nil && h.HTTPGet != nil {
			named(&old.HTTPGet.Port, &h.HTTPGet.Port)
		}
		if old.TCPSocket != nil && h.TCPSocket != nil {
			named(&old.TCPSocket.Port, &h.TCPSocket.Port)
		}
	}
}

// projectMap takes the keys of one map with the values of another. What the
// other does not have any more is gone.
func projectMap(keys, values map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range keys {
		now, ok := values[k]
		if !ok {
			continue
		}
		out[k] = project(v, now)
	}
	return out
}

func project(noted, now any) any {
	switch x := noted.(type) {
	case map[string]any:
		if y, ok := now.(map[string]any); ok {
			return projectMap(x, y)
		}
	case []any:
		if y, ok := now.([]any); ok {
			return projectList(x, y)
		}
	}
	return now
}

// projectList takes elements by name; of elements without one, those that are
// still there. A list of plain values counts whole.
func projectList(noted, now []any) any {
	names, there := listNames(noted), listNames(now)
	out := []any{}
	for i, x := range noted {
		if _, isMap := x.(map[string]any); !isMap {
			return now
		}
		for j, y := range now {
			if names != nil && there != nil {
				if names[i] == there[j] {
					out = append(out, project(x, y))
				}
			} else if covers(y, x) {
				out = append(out, x)
				break
			}
		}
	}
	if reflect.DeepEqual(out, noted) {
		return noted
	}
	return out
}
