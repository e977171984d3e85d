// Package grpcclient tests Isthmus with xDS clients that are not ours: grpc-go's
// and, where Debian's python3-grpcio is installed, that of gRPC's C core. They
// resolve a service that runs in several clusters and move real bytes to real
// servers on loopback.
package grpcclient
