# Isthmus. `make help` lists the targets.
GO      ?= go
BIN     := bin/isthmus
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
LINT    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
# Packages are tested a few at a time: race binaries are large.
PARALLEL ?= 2
FUZZTIME ?= 20s

.DEFAULT_GOAL := help
.PHONY: help build demo demo-kube test test-fast test-kube check format lint conform bench bench-ca fuzz golden clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/isthmus
	@mkdir -p bin
	@[ -x $(BIN) ] || echo "building $(BIN): the first time takes a few minutes"
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/isthmus

demo: build ## three clusters from folders of YAML, a page to look at, live edits; ends with Ctrl-C, or by itself with DEMOFLAGS=--once
	$(BIN) demo --files manifests/demo --primary north $(DEMOFLAGS)

demo-kube: build ## the same on three real API servers (first run builds them: about five minutes)
	$(GO) run ./testenv/demokube -isthmus $(BIN) -world manifests/demo -primary north

test: ## everything: vet, unit, race, property and scenario tests on real API servers
	$(GO) vet ./...
	@echo "the API server for tests: built once per go.sum (about five minutes), then taken from the cache"
	$(GO) test -count=1 -v -timeout 30m -run '^TestBinary$$' ./testenv/apiserver
	$(GO) test -race -p $(PARALLEL) -timeout 20m ./...
	cd testenv/conformance && $(GO) test -timeout 15m ./...
	cd testenv/helm && $(GO) test -timeout 15m ./...

test-fast: ## unit tests only, no race detector, no API servers
	$(GO) test -short ./...

check: format lint test ## what a change must pass: format, vet, lint, all tests

format: ## fail if gofmt would change a file
	@out=$$(git ls-files '*.go' | xargs gofmt -l); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi

lint: ## golangci-lint with the import directions (depguard)
	$(GO) run $(LINT) run ./...
	cd testenv/kube && $(GO) run $(LINT) run --config ../../.golangci.yml ./...

bench: build ## load client against Isthmus and the floor server, in turn
	$(GO) run ./testenv/load/cmd/bench -isthmus $(BIN)

bench-ca: ## certificates per second, mutual TLS connections per second, certificates while 1,000 proxies reconnect
	$(GO) test -run '^$$' -bench 'Issue|Service|Refusal' ./ca
	$(GO) test -run '^$$' -bench MTLSHandshake ./testenv/mtls
	$(GO) test -run '^$$' -bench Reconnect -benchtime 3x ./cmd/isthmus/serve

fuzz: ## every fuzz target for FUZZTIME each
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg 2>/dev/null | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg || exit 1; \
	  done; \
	done

golden: ## rewrite golden files after an intended change; read the diff
	@for pkg in $$(grep -rl '"update", false' --include='*_test.go' . | xargs -n1 dirname | sort -u); do \
	  echo "$$pkg"; $(GO) test $$pkg -update || exit 1; \
	done

clean: ## remove build output
	rm -rf bin
