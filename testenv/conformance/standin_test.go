package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// node is where all pods run; endpoints are only listed of those that run somewhere.
const node = "node"

// standInEvery is how often the stand-in looks for work.
const standInEvery = 200 * time.Millisecond

// standIn does what a cluster would do: it gives Deployments Pods that are ready,
// and Gateways a Service with an address.
type standIn struct {
	w *world

	mu        sync.Mutex
	next      int
	addresses map[string]string      // address -> NAMESPACE/NAME of the Gateway that has it
	running   map[string]*corev1.Pod // by address
}

func (s *standIn) run(ctx context.Context) error {
	tick := time.NewTicker(standInEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.pods(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		if err := s.services(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func (s *standIn) pods(ctx context.Context) error {
	list, err := s.w.cluster.Client().AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list deployments: %w", err)
	}
	for i := range list.Items {
		d := &list.Items[i]
		for n := range int(*d.Spec.Replicas) {
			name := fmt.Sprintf("%s-set-%d", d.Name, n) // the suite takes off the last two parts
			api := s.w.cluster.Client().CoreV1().Pods(d.Namespace)
			if _, err := api.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				continue
			}
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec}
			p.Spec.NodeName = node
			p, err := api.Create(ctx, p, metav1.CreateOptions{})
			if apierrors.IsForbidden(err) {
				continue // the namespace's account is not there yet
			}
			if err != nil {
				return fmt.Errorf("create pod %s: %w", name, err)
			}
			s.next++
			ip := fmt.Sprintf("10.1.%d.%d", s.next/250, s.next%250+1)
			p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}}}
			if _, err := api.UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
				return fmt.Errorf("make pod %s ready: %w", name, err)
			}
			s.mu.Lock()
			s.running[ip] = p
			s.mu.Unlock()
		}
	}
	return nil
}

// services gives every Gateway a Service with the ports of its listeners.
func (s *standIn) services(ctx context.Context) error {
	for _, o := range s.w.store.Catalog().Objects(mesh.KindGatewayAPIGateway) {
		spec := o.Value.(*gatewayv1.GatewaySpec)
		if spec.GatewayClassName != gatewayapi.ClassIstio {
			continue
		}
		if err := s.service(ctx, o, spec); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) { // of a namespace that is going
			return err
		}
	}
	return nil
}

func (s *standIn) service(ctx context.Context, o *mesh.Object, spec *gatewayv1.GatewaySpec) error {
	api := s.w.cluster.Client().CoreV1().Services(o.Key.Namespace)
	name := o.Key.Name + "-" + gatewayapi.ClassIstio
	want := map[int32]corev1.ServicePort{}
	for _, l := range spec.Listeners {
		want[l.Port] = corev1.ServicePort{Name: fmt.Sprintf("port-%d", l.Port), Port: l.Port, TargetPort: intstr.FromInt32(l.Port)}
	}
	svc, err := api.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		svc = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer,
			Selector: map[string]string{"gateway.networking.k8s.io/gateway-name": o.Key.Name}}}
		for _, p := range want {
			svc.Spec.Ports = append(svc.Spec.Ports, p)
		}
		svc, err = api.Create(ctx, svc, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	have := map[int32]bool{}
	for _, p := range svc.Spec.Ports {
		have[p.Port] = true
	}
	missing := false
	for n := range want {
		missing = missing || !have[n]
	}
	if missing {
		svc.Spec.Ports = nil
		for p := range maps.Values(want) {
			svc.Spec.Ports = append(svc.Spec.Ports, p)
		}
		if svc, err = api.Update(ctx, svc, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	address := s.address(o.Key)
	for n := range want {
		if err := s.w.doors.add(ctx, address, n, o.Key.Namespace+"/"+o.Key.Name); err != nil {
			return err
		}
	}
	if len(svc.Status.LoadBalancer.Ingress) > 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": address}}}}})
	if err != nil {
		return err
	}
	_, err = api.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// address is the Gateway's, always the same.
func (s *standIn) address(k mesh.ObjectKey) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := k.Namespace + "/" + k.Name
	for a, n := range s.addresses {
		if n == name {
			return a
		}
	}
	a := gatewayAddress(len(s.addresses))
	s.addresses[a] = name
	return a
}

// gatewayAddress is the nth address that is given out. All of 127.0.0.0/8 is the
// machine's own on Linux.
func gatewayAddress(n int) string { return fmt.Sprintf("127.18.%d.%d", n/250, n%250+1) }

// podAt is the pod that has an address, nil if none has.
func (s *standIn) podAt(address string) *corev1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[address]
}

// podCalled is the pod of a name, nil if there is none.
func (s *standIn) podCalled(namespace, name string) *corev1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.running {
		if p.Namespace == namespace && p.Name == name {
			return p
		}
	}
	return nil
}

// gatewayAt is the Gateway that has an address.
func (s *standIn) gatewayAt(address string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addresses[address]
}
