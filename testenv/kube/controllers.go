package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	sacontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

const (
	workers       = 4
	gcSyncPeriod  = 10 * time.Second // how soon the collector learns of a new CRD
	sliceMaxSize  = 100              // endpoints per slice, as in a stock cluster
	sliceBatching = 0                // a change is written at once
)

// controller is the running part of a controller.
type controller func(ctx context.Context)

// factory has what controllers are made from.
type factory struct {
	pki       *pki
	client    kubernetes.Interface
	metadata  metadata.Interface
	informers informers.SharedInformerFactory
	metaInfs  metadatainformer.SharedInformerFactory
	started   chan struct{} // closed when the informers have been started
}

// startControllers runs the controllers until ctx ends. The channel returned
// is closed when all have stopped.
func startControllers(ctx context.Context, cfg *rest.Config, p *pki) (<-chan struct{}, error) {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("build client: %w", err)
	}
	meta, err := metadata.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("build metadata client: %w", err)
	}
	f := &factory{
		pki: p, client: client, metadata: meta,
		informers: informers.NewSharedInformerFactory(client, 0),
		metaInfs:  metadatainformer.NewSharedInformerFactory(meta, 0),
		started:   make(chan struct{}),
	}
	var all []controller
	for _, build := range []func(context.Context) (controller, error){
		f.serviceAccounts, f.tokenSecrets, f.rootCAs, f.namespaces, f.endpointSlices, f.garbage,
	} {
		run, err := build(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, run)
	}
	return f.run(ctx, all), nil
}

// run starts controllers and informers.
func (f *factory) run(ctx context.Context, all []controller) <-chan struct{} {
	var running sync.WaitGroup
	for _, run := range all {
		running.Go(func() { run(ctx) })
	}
	f.informers.Start(ctx.Done())
	f.metaInfs.Start(ctx.Done())
	close(f.started)

	done := make(chan struct{})
	go func() {
		defer close(done)
		running.Wait()
		f.informers.Shutdown()
		f.metaInfs.Shutdown()
	}()
	return done
}

// serviceAccounts gives each namespace its default ServiceAccount; pods are
// rejected without.
func (f *factory) serviceAccounts(ctx context.Context) (controller, error) {
	c, err := sacontroller.NewServiceAccountsController(klog.FromContext(ctx),
		f.informers.Core().V1().ServiceAccounts(), f.informers.Core().V1().Namespaces(),
		f.client, sacontroller.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, fmt.Errorf("build serviceaccount controller: %w", err)
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

// tokenSecrets fills Secrets of type service-account-token, which is what
// remote secrets are made from.
func (f *factory) tokenSecrets(ctx context.Context) (controller, error) {
	raw, err := os.ReadFile(tokenKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read token key: %w", err)
	}
	key, err := keyutil.ParsePrivateKeyPEM(raw)
	if err != nil {
		return nil, fmt.Errorf("parse token key: %w", err)
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("build token generator: %w", err)
	}
	c, err := sacontroller.NewTokensController(klog.FromContext(ctx),
		f.informers.Core().V1().ServiceAccounts(), f.informers.Core().V1().Secrets(), f.client,
		sacontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: f.pki.ca})
	if err != nil {
		return nil, fmt.Errorf("build token controller: %w", err)
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

// rootCAs publishes the ConfigMap kube-root-ca.crt in each namespace.
func (f *factory) rootCAs(context.Context) (controller, error) {
	c, err := rootcacertpublisher.NewPublisher(
		f.informers.Core().V1().ConfigMaps(), f.informers.Core().V1().Namespaces(), f.client, f.pki.ca)
	if err != nil {
		return nil, fmt.Errorf("build root CA publisher: %w", err)
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

// namespaces empties and removes deleted namespaces.
func (f *factory) namespaces(ctx context.Context) (controller, error) {
	c := namespace.NewNamespaceController(ctx, f.client, f.metadata,
		f.client.Discovery().ServerPreferredNamespacedResources,
		f.informers.Core().V1().Namespaces(), 5*time.Minute, corev1.FinalizerKubernetes)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

// endpointSlices keeps the slices of Services with a selector.
func (f *factory) endpointSlices(ctx context.Context) (controller, error) {
	core := f.informers.Core().V1()
	c := endpointslice.NewController(ctx, core.Pods(), core.Services(), core.Nodes(),
		f.informers.Discovery().V1().EndpointSlices(), sliceMaxSize, f.client, sliceBatching)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

// garbage deletes objects whose owners are gone.
func (f *factory) garbage(ctx context.Context) (controller, error) {
	discovery := f.client.Discovery()
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery))
	c, err := garbagecollector.NewGarbageCollector(ctx, f.client, f.metadata, mapper,
		garbagecollector.DefaultIgnoredResources(),
		informerfactory.NewInformerFactory(f.informers, f.metaInfs), f.started)
	if err != nil {
		return nil, fmt.Errorf("build garbage collector: %w", err)
	}
	return func(ctx context.Context) {
		var both sync.WaitGroup
		both.Go(func() { c.Run(ctx, workers, gcSyncPeriod) })
		both.Go(func() { c.Sync(ctx, discovery, gcSyncPeriod) })
		both.Wait()
	}, nil
}
