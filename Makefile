# Everything that people and CI do with this checkout; `make help` lists it.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := help

GO      ?= tools/go
CACHE   := .cache
BIN     := bin/dyetrace
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

# Labs, switches and packet sockets need root. With root's own home, no file in the caches of who
# called sudo comes to belong to root; git, and so buildvcs, refuses checkouts of other users.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo env "PATH=$$PATH" HOME=/root GOFLAGS=-buildvcs=false)

# The longest package, ./e2e, takes some twelve minutes on two cores; a hang should not take an hour.
TEST_TIMEOUT  ?= 30m
TEST_FLAGS    ?=
BENCH_TIME    ?= 2s
BENCH_PACKAGES = ./stain ./flows ./dataplane/... ./agent ./plugin/... ./e2e/...

.PHONY: help
help: ## list these targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what is missing, from Debian's packages (root or sudo)
	@tools/setup

.PHONY: build
build: ## build the one static binary, bin/dyetrace
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/dyetrace

.PHONY: demo
demo: setup build ## raise a lab, break it in several ways, see each named, leave nothing behind
	@$(AS_ROOT) e2e/demo.sh $(BIN)

# What is compiled first does not keep processors busy beside the first tests. The end-to-end tests measure
# time, so they run after all others and not beside them, one package at a time. They build the binary themselves, of which go's
# cache of test results knows nothing.
.PHONY: test
test: setup ## run all tests, with the race detector, end-to-end tests included
	$(GO) vet ./...
	$(AS_ROOT) $(GO) build -race ./...
	$(AS_ROOT) $(GO) test -race -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) $$($(GO) list ./... | grep -v '/e2e')
	$(AS_ROOT) $(GO) test -race -count 1 -timeout $(TEST_TIMEOUT) -p 1 $(TEST_FLAGS) ./e2e/...

# The end-to-end tests again, with labs whose nodes are containers. By CLAB_RUN, some: CI runs those of
# verdicts, causes, routes and OVN.
CLAB     := $(CACHE)/bin/containerlab
CLAB_RUN ?= .

# By what its sums say, not by the age of files, which every checkout renews.
.PHONY: containerlab
containerlab: ## build containerlab v0.60.0, for labs of containers
	@sum=$$(cat tools/containerlab/go.* | sha256sum); \
	if [ ! -x $(CLAB) ] || [ "$$(cat $(CLAB).sum 2>/dev/null)" != "$$sum" ]; then \
		echo 'building containerlab (once; some minutes)'; \
		mkdir -p $(CACHE)/bin; \
		(cd tools/containerlab && ../go build -ldflags '-X github.com/srl-labs/containerlab/cmd.version=0.60.0' \
			-o $(abspath $(CLAB)) github.com/srl-labs/containerlab); \
		echo "$$sum" >$(CLAB).sum; \
	fi

.PHONY: clab-image
clab-image: build ## make the image of a lab's nodes, dyetrace/lab, on this machine's Docker Engine
	@$(AS_ROOT) e2e/clab/image $(BIN)

.PHONY: clab-base
clab-base:
	@tools/setup clab
	@$(AS_ROOT) e2e/clab/image --prepare

# What is to be had from the network, and what is to be compiled, take minutes each, once.
.PHONY: e2e-clab
e2e-clab: setup build ## run the end-to-end tests on containers, by containerlab and Docker
	@$(MAKE) -j 2 containerlab clab-base
	$(GO) test -race -c -o $(CACHE)/e2e.test ./e2e
	$(GO) test -race -c -o $(CACHE)/clab.test ./e2e/clab
	$(AS_ROOT) e2e/clab/with-docker e2e/clab/run $(BIN) -test.run '$(CLAB_RUN)' -test.timeout $(TEST_TIMEOUT) $(CLAB_FLAGS)

# Debian's releases have Open vSwitch 2.15 (bullseye), 3.1 (bookworm) and 3.5 (trixie); Ubuntu's xenial has
# 2.5, which is too old: beside that one, there is one test.
SUITE      ?= trixie
SUITE_TEST ?= .

.PHONY: test-ovs
test-ovs: setup ## run the tests of hooks, switches and agents on another Debian's Open vSwitch (SUITE=trixie)
	@tools/setup debian
	@$(AS_ROOT) e2e/debian/test $(SUITE) -test.run '$(SUITE_TEST)'

.PHONY: e2e-systemd
e2e-systemd: setup build ## boot a Debian (SUITE=trixie), and run both daemons there by their systemd units
	@tools/setup debian
	@$(AS_ROOT) e2e/debian/systemd $(SUITE) $(BIN)

# And again, on the kernel's own datapath: where this host's kernel has none, on one that runs as a process
# (KERNEL_BY=uml), or in an emulated machine (KERNEL_BY=vm), which takes hours for all. By KERNEL_RUN, some.
# The one of 104 guests is left out.
KERNEL_RUN ?= .
KERNEL_BY  ?= uml

.PHONY: e2e-kernel
e2e-kernel: setup build ## run the end-to-end tests with switches that forward in the kernel
	@[ -d /sys/module/openvswitch ] || modprobe -n -q openvswitch 2>/dev/null || \
		{ tools/setup kernel-$(KERNEL_BY) && $(AS_ROOT) e2e/kernel/$(KERNEL_BY) --prepare; }
	CGO_ENABLED=0 $(GO) test -c -o $(CACHE)/e2e-kernel.test ./e2e
	$(AS_ROOT) e2e/kernel/run $(KERNEL_BY) $(BIN) $(CACHE)/e2e-kernel.test -test.run '$(KERNEL_RUN)' -test.skip TestNoTouch -test.timeout 2h $(KERNEL_FLAGS)

# Of the switch's tests, that of connection tracking: the kernel's is another one than ovs-vswitchd's own.
.PHONY: test-kernel
test-kernel: setup build ## run the tests of connection tracking with a switch that forwards in the kernel
	@[ -d /sys/module/openvswitch ] || modprobe -n -q openvswitch 2>/dev/null || \
		{ tools/setup kernel-$(KERNEL_BY) && $(AS_ROOT) e2e/kernel/$(KERNEL_BY) --prepare; }
	CGO_ENABLED=0 $(GO) test -c -o $(CACHE)/ovs-kernel.test ./dataplane/ovs
	$(AS_ROOT) e2e/kernel/run $(KERNEL_BY) $(BIN) $(CACHE)/ovs-kernel.test -test.run '^TestTraceAnswers$$' -test.v

.PHONY: e2e-all
e2e-all: test e2e-clab test-kernel e2e-kernel ## run all tests there are, on all that labs can be made of; an hour or more

.PHONY: bench
bench: setup ## measure: probes/s, samples/s, verdicts/s, 10,000 pairs, cost on user traffic
	$(AS_ROOT) $(GO) test -run '^$$' -bench . -benchtime $(BENCH_TIME) -timeout 40m $(BENCH_PACKAGES)

.PHONY: bench-evpn
bench-evpn: setup ## measure 100k and 1M EVPN routes, same feed into FRR's bgpd: time, memory, lookups
	$(AS_ROOT) $(GO) test -run '^TestAgainstFRR$$' -count 1 -v -timeout 20m ./bgp/bench -args -full

# Figures, and failures by what TestFaultBench says. SEED=N repeats a run; FAULTBENCH_ONLY=text has only cases whose
# name contains it. In a continuous run 95 hard faults took 14 minutes, and the simulation takes 8 more.
FAULTBENCH_TIME   ?= 60m
FAULTBENCH_PHASES ?= racks,continuous,ovn,ovn-continuous,evpn
FAULTBENCH_ONLY   ?=
FAULTBENCH_JSON   ?= $(CACHE)/faultbench.json
SEED              ?= 0
SIM_WORLDS        ?= 10000
SIM_PAIRS         ?= 1000000
SIM_SEED          ?= 1

.PHONY: faultbench
faultbench: setup ## break labs in every way, alone and together, and hold verdicts against the truth; simulate
	@mkdir -p $(dir $(FAULTBENCH_JSON))
	@failed=0; trap 'exit 130' INT TERM; \
	$(AS_ROOT) $(GO) test -count 1 -v -timeout 2h -run '^TestFaultBench$$' ./e2e -args -faultbench $(FAULTBENCH_TIME) -seed $(SEED) \
		-faultbench-json $(abspath $(FAULTBENCH_JSON)) -faultbench-phases $(FAULTBENCH_PHASES) -faultbench-only '$(FAULTBENCH_ONLY)' || failed=1; \
	$(GO) test -count 1 -v -timeout 40m -run '^Test(NeverWrong|AnsweredStaysAnswered)$$' ./plugin/verdict -rapid.checks 500 || failed=1; \
	$(GO) test -count 1 -v -run '^TestSimulated$$' ./plugin/verdict/infer || failed=1; \
	$(GO) test -count 1 -v -timeout 2h -run '^Test(Simulated|FalseAlarm).*' ./plugin/run -args -sim.worlds $(SIM_WORLDS) -sim.pairs $(SIM_PAIRS) -sim.seed $(SIM_SEED) || failed=1; \
	exit $$failed

.PHONY: lint
lint: ## gofmt, go vet, staticcheck; generated code too, once `make tools` was run
	@unformatted=$$(find . -path ./$(CACHE) -prune -o -name '*.go' -print0 | xargs -0 "$$($(GO) env GOROOT)/bin/gofmt" -l); \
	if [ -n "$$unformatted" ]; then printf 'not gofmt-ed:\n%s\n' "$$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	@if [ -x $(CACHE)/bin/buf ]; then tools/generate --check; \
	else echo 'generated code not looked at: run `make tools` once'; fi

.PHONY: tools
tools: ## build what `make generate` needs: buf and its plugins, pinned in tools/go.mod and go.mod
	@mkdir -p $(CACHE)/bin
	$(GO) build -modfile=tools/go.mod -o $(CACHE)/bin/buf github.com/bufbuild/buf/cmd/buf
	$(GO) build -o $(CACHE)/bin/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go

.PHONY: generate
generate: tools ## generate code from api/**/*.proto
	tools/generate

.PHONY: clean
clean: ## remove what was built
	rm -rf bin $(CACHE)/bin
