// Package mtls tests that traffic between clusters is mutually authenticated
// from end to end: real gRPC clients and servers, configured by our ADS, with
// certificates from our CSR service, speak through HAProxy, which stands as the
// east-west gateway and routes on the server name without opening the stream.
//
// The same callers hold port 15012 to its word: nobody is told what belongs to
// another namespace, no stream outlives its certificate, no flood costs others.
//
// It owns the agent that keeps a workload's certificate files, the adapter from
// a gateway's listener to HAProxy's configuration, and nothing else: what the
// CA, the registry and the ADS server do is theirs to prove. README.md says
// which test holds which row of the security part of the fault table.
package mtls
