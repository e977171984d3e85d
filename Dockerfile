# syntax=docker/dockerfile:1
# The image of the control plane: one static binary, nobody to log in as, nothing to write to.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=v0.1.0 -t ghcr.io/isthmus-mesh/isthmus:v0.1.0 --push .
#
# The compiler runs on the machine that builds and makes binaries for the platform that is asked for.
ARG GO_VERSION=1.26
FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build
ARG TARGETOS TARGETARCH
ARG VERSION=dev
WORKDIR /src
# Modules change more rarely than code.
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/isthmus ./cmd/isthmus

FROM gcr.io/distroless/static-debian12:nonroot
LABEL org.opencontainers.image.source=https://github.com/isthmus-mesh/isthmus \
      org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /out/isthmus /usr/local/bin/isthmus
# Mounts are found by relative paths, such as ./var/run/secrets.
WORKDIR /
# The user that the chart runs it as; it may be any other.
USER 1337:1337
# ADS and CA over TLS, webhooks, readiness and debug views, metrics, plaintext ADS.
EXPOSE 15012 15017 8080 15014 15010
# Istio's chart gives the arguments only, of which the first is "discovery".
ENTRYPOINT ["/usr/local/bin/isthmus"]
CMD ["discovery"]
