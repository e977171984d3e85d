package inject

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Owner is the workload that made a pod.
type Owner struct {
	metav1.TypeMeta
	Name, Namespace string
}

// OwnerOf finds the workload of a pod in its metadata alone: the controller
// that owns it, and for the kinds that stand between a workload and its pods
// (ReplicaSet, Job, ReplicationController) what their names tell about it. A
// pod without an owner is its own workload.
func OwnerOf(pod *corev1.Pod, namespace string) Owner {
	o := Owner{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, Name: pod.Name, Namespace: namespace}
	ref := metav1.GetControllerOfNoCopy(&pod.ObjectMeta)
	if ref == nil {
		if o.Name == "" {
			o.Name = strings.TrimRight(pod.GenerateName, "-")
		}
		return o
	}
	o.Kind, o.APIVersion, o.Name = ref.Kind, ref.APIVersion, ref.Name
	switch ref.Kind {
	case "ReplicaSet":
		if name, ok := strings.CutSuffix(ref.Name, "-"+pod.Labels[labelTemplateHash]); ok && name != "" && pod.Labels[labelTemplateHash] != "" {
			o.Kind, o.Name = "Deployment", name
		} else if name, ok := strings.CutSuffix(ref.Name, "-"+pod.Labels[labelRolloutHash]); ok && name != "" && pod.Labels[labelRolloutHash] != "" {
			o.Kind, o.APIVersion, o.Name = "Rollout", "argoproj.io/v1alpha1", name
		}
	case "Job":
		if name, ok := cronJobOf(ref.Name); ok {
			o.Kind, o.APIVersion, o.Name = "CronJob", "batch/v1", name
		}
	case "ReplicationController":
		if name := pod.Annotations[annotationDeploymentConf]; name != "" {
			o.Kind, o.APIVersion, o.Name = "DeploymentConfig", "apps.openshift.io/v1", name
		} else if name := pod.Labels[labelDeploymentConf]; name != "" {
			o.Kind, o.APIVersion, o.Name = "DeploymentConfig", "apps.openshift.io/v1", name
		}
	}
	return o
}

// cronJobOf takes the minute out of the name of a job that a CronJob made.
func cronJobOf(job string) (string, bool) {
	at := strings.LastIndexByte(job, '-')
	if at <= 0 {
		return "", false
	}
	minute := job[at+1:]
	if len(minute) < 8 || len(minute) > 10 || strings.Trim(minute, "0123456789") != "" {
		return "", false
	}
	return job[:at], true
}

// nameOf is a name for a pod in messages: pods that a controller makes have
// none yet.
func nameOf(meta *metav1.ObjectMeta, owner Owner) string {
	switch {
	case meta.Name != "":
		return meta.Name
	case meta.GenerateName != "":
		return meta.GenerateName + "*"
	case owner.Name != "":
		return strings.ToLower(owner.Kind) + " " + owner.Name
	}
	return "(without a name)"
}

// proxyIDs are the user and group of the proxy: 1337, or on OpenShift the last
// of those that the namespace has.
func proxyIDs(ns *Namespace) (uid, gid int64) {
	uid, gid = 1337, 1337
	if ns == nil {
		return uid, gid
	}
	if last, ok := lastOfRange(ns.Annotations[annotationUIDRange]); ok {
		uid = last
	}
	groups := ns.Annotations[annotationGroups]
	if groups == "" {
		groups = ns.Annotations[annotationUIDRange]
	}
	first, _, _ := strings.Cut(groups, ",")
	if last, ok := lastOfRange(first); ok {
		gid = last
	}
	return uid, gid
}
