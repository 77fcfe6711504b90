# Everything that is done to this repository is a target here, and `make check`
# is exactly what CI runs. `make help` lists the targets.

.DEFAULT_GOAL := build
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

MODULE := github.com/sallyport-net/sallyport
GO ?= $(firstword $(shell command -v go 2>/dev/null) /usr/local/go/bin/go)
GOFMT = $(shell $(GO) env GOROOT)/bin/gofmt
FUZZTIME ?= 10s
TIMEOUT ?= 10m
TESTFLAGS ?=
FUZZFOR ?= 10m
SOAKFOR ?= 10m
COMPAREFLAGS ?=

# Debian packages that tests against other programs need, and the C compiler of
# the race detector.
PACKAGES := iproute2 iperf3 wireguard-tools wireguard-go curl tcpdump dnsutils iputils-ping nftables systemd gcc libc6-dev git

# Debian packages with the programs that gateway/conformance points at the
# translator; one more is a Go tool. A machine that cannot have them lists their tests as not run.
CONFORMANCE_PACKAGES := wrk coturn traceroute mtr-tiny iputils-tracepath python3-scapy nmap hping3 conntrack tcptraceroute

# A user without a home of their own, like nobody, gets Go's caches in the clone.
ifeq ($(shell test -n "$${HOME-}" && test -d "$$HOME" && test -w "$$HOME" && echo home),)
export GOCACHE := $(CURDIR)/.cache/build
export GOPATH := $(CURDIR)/.cache/go
export GOMODCACHE := $(CURDIR)/.cache/go/mod
export GOENV := off
export GOTELEMETRY := off
export XDG_CACHE_HOME := $(CURDIR)/.cache
endif

# Git refuses to describe a clone that belongs to someone else; the go command
# would fail because of it.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
VERSION ?= $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo dev)

# run-tests runs go test with the arguments $(1) and says at the end which tests
# could not run here, which go test itself keeps to itself.
define run-tests
	list=$$(mktemp); trap 'rm -f "$$list"' EXIT; status=0; \
	SALLYPORT_NOTRUN=$$list $(GO) test -timeout $(TIMEOUT) $(1) || status=$$?; \
	if [ -s "$$list" ]; then \
		echo; echo "NOT RUN ($$(wc -l < "$$list")):"; sed 's/^NOT RUN: /  /' "$$list"; \
	else \
		echo "Nothing was left out."; \
	fi; \
	exit $$status
endef

# stage announces a part of check.
define stage
	@printf '\n==== %s ====\n' '$(1)'
endef

##@ Building

.PHONY: build
build: ## build the programs into bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/...

.PHONY: clean
clean: ## remove what was built, and the caches in the clone
	@if [ -d .cache ]; then chmod -R u+w .cache; fi # Go's module cache is read-only
	rm -rf bin .cache

.PHONY: deps
deps: ## install the Debian packages that tests and demo use (as root or with sudo)
	@if dpkg -s $(PACKAGES) $(CONFORMANCE_PACKAGES) >/dev/null 2>&1; then echo "All packages are installed."; exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
		echo "This is no Debian or Ubuntu. Install the equivalents of: $(PACKAGES) $(CONFORMANCE_PACKAGES)" >&2; exit 1; \
	fi; \
	sudo=; if [ "$$(id -u)" != 0 ]; then sudo="sudo --preserve-env=DEBIAN_FRONTEND"; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt() { timeout --foreground "$$1" $$sudo apt-get -q -o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o APT::Update::Error-Mode=any "$${@:2}"; }; \
	if dpkg -s $(PACKAGES) >/dev/null 2>&1; then \
		apt 120 update || reached=no; \
	else \
		apt 600 update; \
		apt 1200 install -y --no-install-recommends $(PACKAGES); \
	fi; \
	missing=(); for package in $(CONFORMANCE_PACKAGES); do \
		dpkg -s "$$package" >/dev/null 2>&1 && continue; \
		[ "$${reached-}" != no ] && apt 300 install -y --no-install-recommends "$$package" || missing+=("$$package"); \
	done; \
	if [ "$${#missing[@]}" != 0 ]; then echo "not installed: $${missing[*]}; tests that need them will be listed as not run"; fi

##@ Checking

.PHONY: test
test: ## run every test that this machine and user can run, and list the others
	@$(call run-tests,$(TESTFLAGS) ./...)

# The packages with code that runs, which the race detector may find something in.
# internal/archtest reads text in one goroutine, and is ten times slower with it.
RACE_PACKAGES = $(shell $(GO) list ./... | grep -v '/internal/archtest$$')

.PHONY: race
race: ## run all tests but those of internal/archtest with the race detector, also in programs that they start
	@$(call run-tests,-race $(TESTFLAGS) $(RACE_PACKAGES))

# Tests that need network namespaces are those of packages whose tests import
# netlab. Root has more of the machine than a user namespace has, so that some of
# them run for root alone.
NETNS_PACKAGES = $(shell grep -rl --include='*_test.go' --exclude-dir=.cache '"$(MODULE)/internal/netlab"' . | xargs -n1 dirname | sort -u)

# as-root makes exec the arguments with which go test runs tests as root, if that
# goes without a question.
define as-root
	exec=(); if [ "$$(id -u)" != 0 ]; then \
		if sudo -n true 2>/dev/null; then exec=(-exec "sudo -n --preserve-env=SALLYPORT_NOTRUN,SALLYPORT_SOAK,SALLYPORT_SEED"); \
		else echo "Not root, and no sudo without a password: in user namespaces, where some tests cannot run."; fi; \
	fi
endef

.PHONY: netns
netns: ## run the tests in network namespaces, as root where that goes; `make test` of root has them too
	@$(as-root); $(call run-tests,-count=1 $(TESTFLAGS) "$${exec[@]}" $(NETNS_PACKAGES))

# A test that says by netlab.Soak how long it goes on is called TestSoak. The others
# run it shortly.
.PHONY: soak
soak: TIMEOUT = 3h
soak: ## run the tests that go on for long, each for SOAKFOR (10m), as root where that goes
	@$(as-root); packages=$$(grep -rlE --include='*_test.go' --exclude-dir=.cache '^func TestSoak' . | xargs -r -n1 dirname | sort -u); \
	if [ -z "$$packages" ]; then echo "No test is called TestSoak."; exit 1; fi; \
	export SALLYPORT_SOAK=$(SOAKFOR); \
	$(call run-tests,-count=1 -p 1 -v -run '^TestSoak' "$${exec[@]}" $$packages)

.PHONY: conformance
conformance: TIMEOUT = 45m
conformance: ## hold the translator against the programs of others, as root, and fuzz it for FUZZFOR (10m)
	@$(GO) list -deps tool >/dev/null || true # pion's program, which tests in a user namespace cannot fetch
	@$(as-root); $(call run-tests,-count=1 -v "$${exec[@]}" ./gateway/conformance -long -fuzz-for=$(FUZZFOR))

.PHONY: lint
lint: ## gofmt, go vet and staticcheck
	@unformatted=$$(find . -name '*.go' -not -path './.cache/*' -exec $(GOFMT) -l {} +); \
	if [ -n "$$unformatted" ]; then echo "gofmt these files: $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# The units name programs at their installed places: systemd looks at a tree in
# which they are there, without our drop-ins and with them. It warns of unknown keys
# and succeeds all the same, so that every word of it counts as a failure.
.PHONY: units
units: build ## check the systemd units with systemd-analyze
	@if ! command -v systemd-analyze >/dev/null; then \
		echo "NOT RUN: systemd-analyze is not installed (make deps)"; exit 0; \
	fi; \
	root=$$(mktemp -d); trap 'rm -rf "$$root"' EXIT; \
	mkdir -p "$$root/bin" "$$root/usr/local/bin" "$$root/etc/systemd/system" "$$root/usr/lib/systemd"; \
	install -m 755 /dev/null "$$root/bin/kill"; \
	cp bin/sallyportd bin/sallyport-sidecar "$$root/usr/local/bin/"; \
	cp deploy/systemd/*.service "$$root/etc/systemd/system/"; \
	cp -r /lib/systemd/system "$$root/usr/lib/systemd/"; \
	for unit in deploy/systemd/*.service; do for dropin in "" "$$unit".d/*.conf; do \
		if [ -n "$$dropin" ]; then \
			if [ ! -e "$$dropin" ]; then continue; fi; \
			install -D -m 644 -t "$$root/etc/systemd/system/$${unit##*/}.d" "$$dropin"; \
		fi; \
		said=$$(systemd-analyze verify --man=no --root="$$root" "$${unit##*/}" 2>&1) || said="$$said (systemd-analyze failed)"; \
		if [ -n "$$said" ]; then echo "$$unit $$dropin: $$said" >&2; exit 1; fi; \
		echo "$$unit$${dropin:+ with $${dropin##*/}}: good"; \
	done; done

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (10s)
	@status=0; while read -r file target; do \
		echo "---- $${file%/*} $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$${file%/*}" || status=$$?; \
	done < <(grep -rE --include='*_test.go' --exclude-dir=.cache -o '^func Fuzz[A-Za-z0-9_]*' . | sed 's/:func / /'); \
	exit $$status

.PHONY: bench
bench: ## run the benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: bench-nat
bench-nat: build ## measure the translator, also against gVisor's NAT, for docs/benchmarks.md
	@$(MAKE) bench-report RUN=translator,yardstick

# The comparator is built from the module that our programs use: distributions have
# it years older.
.PHONY: comparator
comparator: build
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/wireguard-go golang.zx2c4.com/wireguard

.PHONY: bench-compare
bench-compare: comparator ## measure the gateway beside others, as root: a table, and bin/compare.json
	@sudo=(); if [ "$$(id -u)" != 0 ]; then sudo=(sudo); fi; \
	"$${sudo[@]}" bin/sallyport-bench compare --json bin/compare.json $(COMPAREFLAGS)

# The parts of the report on benchmarks, and the harness's arguments for each. A part is a
# file of docs/benchmarks, which keeps its figures and their date until all of it is measured
# again: what a run got that was interrupted or failed is beside it, in NAME.partial.json.
REPORT_PARTS := tcp udp64 udp1420 latency connections translator yardstick scale sandboxes sessions attach
VARIANTS := wireguard-go,gvisor,kernel,sockets,tun
REPORT_tcp = compare --whole --title 'TCP bulk' --variants $(VARIANTS) --scenarios tcp-out,tcp-in --bulk 5s
REPORT_udp64 = compare --whole --title 'Packets of 64 bytes' --variants $(VARIANTS) --scenarios udp-out,udp-in --rate 50000 --try 400ms
REPORT_udp1420 = compare --whole --title 'Packets of 1420 bytes' --variants $(VARIANTS) --scenarios udp1420-out,udp1420-in --rate 50000 --try 250ms
REPORT_latency = compare --whole --title 'Requests and answers' --variants $(VARIANTS) --scenarios latency-idle,latency-half --try 300ms
REPORT_connections = compare --whole --title 'Short connections' --variants $(VARIANTS) --scenarios connections,connections-one --try 300ms
REPORT_scale = scale --whole
REPORT_sandboxes = run --whole --chain --uplink tun --scenarios sandboxes
REPORT_sessions = run --whole --chain --uplink tun --scenarios sessions
REPORT_attach = run --whole --chain --uplink tun --scenarios attach
REPORT_translator = record --title 'The translator' -- $(GO) test -run ^$$ -bench . -benchmem -count 3 -timeout 30m ./nat ./internal/packet
REPORT_yardstick = record --title 'The translator beside that of gVisor' -- $(GO) test -run ^$$ -bench SNAT -count 3 -timeout 30m ./internal/netstack

RUN ?= $(REPORT_PARTS)
comma := ,
report-run = $(subst $(comma), ,$(RUN))

.PHONY: bench-report
bench-report: comparator ## measure all, or RUN=tcp,udp64 of it (none: nothing), as root, and write docs/benchmarks.md
	@if [ -z "$(report-run)" ]; then echo "RUN= names no part of the report: choose from $(REPORT_PARTS), or none" >&2; exit 1; fi; \
	unknown="$(filter-out none $(REPORT_PARTS),$(report-run))"; if [ -n "$$unknown" ]; then \
		echo "There is no part $$unknown of the report: choose from $(REPORT_PARTS), or none (RUN=)" >&2; exit 1; \
	fi; \
	sudo=(); if [ "$$(id -u)" != 0 ]; then sudo=(sudo --preserve-env=PATH$(comma)GOFLAGS); fi; status=0; \
	trap 'exit 130' INT; \
	measure() { part=$$1; shift; echo "---- $$part"; \
		"$${sudo[@]}" bin/sallyport-bench "$$1" --json "docs/benchmarks/$$part.json" "$${@:2}" || status=$$?; }; \
	$(foreach part,$(filter-out none,$(report-run)),measure $(part) $(REPORT_$(part));) \
	bin/sallyport-bench report; \
	exit $$status

.PHONY: demo
demo: build ## show the gateway at work on this machine
	bin/sallyport-bench demo

.PHONY: failover
failover: build ## make hosts and regions fail, shortly, and see that others take over
	@report=$$(mktemp -d); trap 'rm -rf "$$report"' EXIT; \
	bin/sallyport-bench failover --runs 2 --load 10s --out "$$report/failover.md"

.PHONY: failover-report
failover-report: build ## measure failover and write docs/failover.md
	bin/sallyport-bench failover --runs 20 --load 2m --out docs/failover.md

.PHONY: check
check: ## what CI runs: lint, the tests (netns among them), the tests with the race detector, the demo, failover
	$(call stage,lint)
	@$(MAKE) lint units
	$(call stage,test)
	@$(MAKE) test TESTFLAGS=-count=1
	@if [ "$$(id -u)" != 0 ]; then printf '\n==== netns ====\n'; $(MAKE) netns; fi # root has run them
	$(call stage,race)
	@$(MAKE) race TESTFLAGS=-count=1
	$(call stage,demo)
	@$(MAKE) demo
	$(call stage,failover)
	@$(MAKE) failover
	$(call stage,all is well)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
