# The targets are the steps of CI (.ci/run), so that what passes here passes there.
# `make` alone prints them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: setlk frameworks help build docs check vuln test race fuzz demo bench newcomer bench-proxy soak soak-faults soak-archive clean left release package-test page-test packaging-check

BUILD := .build
PKG ?= ./...
# A package that takes longer than this hangs: it says where.
TIMEOUT ?= 20m
# Inputs per fuzz target. A count, never a duration: the go command may report the end of a duration
# as a failure of the target ("context deadline exceeded").
FUZZ ?= 5000
DEMO_SECONDS ?= 8
BENCH_ARGS ?=
# Moves of the primary role of each kind: 50 take twenty minutes, for a kill takes a lease.
MOVES ?= 5
SOAK_DURATION ?= 30m
SOAK_CLUSTERS ?= 200000
SOAK_LOGS ?= 50000

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the command, in .build/litefs
	@mkdir -p $(BUILD)
	go build -o $(BUILD)/litefs ./cmd/litefs

docs: build ## docs/configuration.md, from the code
	$(BUILD)/litefs config -reference > docs/configuration.md

check: ## gofmt, vet, staticcheck
	@unformatted=$$(find . -name "*.go" -not -path "./.*" -print0 | xargs -0 gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not formatted (run gofmt -w):"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

vuln: ## govulncheck, with the newest reports that the module proxy has, or those of VULNDB
	.ci/vulncheck

test: ## go test ./..., one package at a time; a skipped test is a failure
	.ci/test -p=1 -timeout $(TIMEOUT) $(PKG)

race: ## the race detector on the packages below the kernel
	go test -p=1 -timeout $(TIMEOUT) -race -skip '$(ONE_GOROUTINE)' $$(go list ./... | grep -v -E '$(ABOVE_RACE)')

# These serve a mount or drive child processes that do: their time goes to the kernel and to SQLite,
# and the algorithms they call are raced on their own. Roles are a state machine with no goroutine.
ABOVE_RACE := /(fuse|cmd/litefs|internal/(daemon|e2e|bench|demo|deps|childnode|leaseserver|sqlapp|sqlitetest|role))$$

# Enumerations and random histories of ltxlog and ship that one goroutine makes, with no sync in the background: there is
# nothing to race, and it takes minutes.
ONE_GOROUTINE := ^Test((Recent|Sealed|Packed)?(EveryOperationFails|PowerCut)|RandomHistories)$$

fuzz: ## every fuzz target, FUZZ inputs each
	.ci/fuzz $(FUZZ)

demo: build ## the demonstration, for DEMO_SECONDS, ended as by Ctrl-C
	timeout --foreground --preserve-status -k 120 -s INT $(DEMO_SECONDS) $(BUILD)/litefs demo

bench: build ## the mount against the bare disk, then moves of the role; BENCH_ARGS="-only normal,read -rounds 5", MOVES=50
	$(BUILD)/litefs bench $(BENCH_ARGS)
	$(BUILD)/litefs bench -only handover,failover -rounds $(MOVES)

bench-proxy: ## a read on loopback: from the application, and through the proxy
	go test -run '^$$' -bench '^BenchmarkRead$$' -count 6 ./proxy

newcomer: ## docs/getting-started.md from a fresh clone with nothing compiled, timed
	.ci/newcomer

soak: ## long and random: kill -9, SIGSTOP, power cuts (loop devices, mkfs.ext4), bad networks (iproute2), contention, for SOAK_DURATION
	LITEFS_SOAK=$(SOAK_DURATION) go test -count=1 -timeout 24h -v -run '^(TestSoak|TestRandomOperations)' -skip '^TestSoakFaults$$' ./internal/e2e
	@$(MAKE) --no-print-directory soak-faults
	LITEFS_SOAK=$(SOAK_DURATION) go test -count=1 -timeout 24h -v -run '^TestRecoverRandom' .
	LITEFS_SOAK=$(SOAK_DURATION) go test -count=1 -timeout 24h -v ./internal/netns
	go test -count=1 -timeout 24h -v -run "^TestCluster$$" ./internal/role -role.seeds $(SOAK_CLUSTERS) -role.from $$(date +%s)
	go test -count=1 -timeout 24h -run "^TestRandomHistories$$" ./internal/ltxlog -ltxlog.seeds $(SOAK_LOGS) -ltxlog.from $$(date +%s)

soak-faults: ## nodes and lease server in network namespaces that fail, under clients whose history is judged, for SOAK_DURATION; LITEFS_SEED
	LITEFS_SOAK=$(SOAK_DURATION) go test -count=1 -timeout 24h -v -run '^TestSoakFaults$$' ./internal/e2e

soak-archive: ## the archive of nodes that are killed, stopped, cut off and forked: every moment against what the database was, for SOAK_DURATION; LITEFS_SEED
	LITEFS_SOAK=$(SOAK_DURATION) go test -count=1 -timeout 24h -v -run '^TestSoakArchive' ./internal/e2e

setlk: ## programs whose SQLite is built with SQLITE_ENABLE_SETLK_TIMEOUT, on a replica; the source comes with a Go module
	dir=$$(mktemp -d) && cd $$dir && go mod init setlk 2>/dev/null && \
	c=$$(go mod download -json github.com/mattn/go-sqlite3@v1.14.32 | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/sqlite3-binding.c && \
	rm -r $$dir && cd $(CURDIR) && LITEFS_SQLITE_C=$$c go test -count=1 -tags setlk -run TestForwardSetlk -timeout $(TIMEOUT) ./internal/e2e

frameworks: ## drivers and frameworks of other languages on mounts, with what they need installed first (Debian, npm)
	.ci/frameworks

# The version that is built: that of the tag, as dpkg orders versions.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null | sed 's/^v//; s/-/+/' | grep . || echo 0.0.0)
NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0

# GOTOOLCHAIN=auto: with the newer of this machine's Go and go.mod's "toolchain", which names the one whose
# standard library has no known hole (make vuln).
release: ## static binaries and Debian packages for amd64 and arm64, in .build/release
	rm -rf $(BUILD)/release && mkdir -p $(BUILD)/release
	for arch in amd64 arm64; do \
		binary=$(BUILD)/release/litefs-$(VERSION)-linux-$$arch; \
		GOTOOLCHAIN=auto CGO_ENABLED=0 GOARCH=$$arch go build -trimpath -ldflags "-s -w" -o $$binary ./cmd/litefs; \
		VERSION=$(VERSION) ARCH=$$arch BINARY=$$binary go run $(NFPM) package -f packaging/nfpm.yaml -p deb -t $(BUILD)/release/; \
	done
	cd $(BUILD)/release && sha256sum litefs* > SHA256SUMS && cat SHA256SUMS

package-test: release ## install the package of this machine, run what it installed, remove it (root)
	packaging/test $(BUILD)/release/*_amd64.deb

image-test: ## build packaging/Dockerfile on base images made here, run it alone, below an application and as a sidecar (root; Debian: buildah podman runc mmdebstrap)
	packaging/image-test

packaging-check: ## manifests against the types of the Kubernetes API, alert rules by promtool (Debian: prometheus)
	cd packaging/check && go test -count=1 .
	promtool check rules packaging/monitoring/alerts.yaml

page-test: ## the page of a node in headless Chromium; pictures go to .build/pages
	rm -rf $(BUILD)/pages && mkdir -p $(BUILD)/pages
	LITEFS_SCREENSHOTS=$(CURDIR)/$(BUILD)/pages go test -count=1 -tags browser -run '^TestPage' ./internal/e2e

left: ## fail when a mount was left behind
	.ci/left

clean: ## remove what was built
	rm -rf $(BUILD)
