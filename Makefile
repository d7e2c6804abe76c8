# What a developer can do here. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# Handlers that the end-to-end tests run on.
HANDLERS ?= builtin runc crun
IMAGE ?=
export CARGO_TERM_COLOR ?= auto

.PHONY: help
help: ## List what make can do
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: setup
setup: ## Install the Debian packages that building and testing need (only missing ones)
	@scripts/setup.sh

.PHONY: build
build: ## Build the release binary: static, at target/wharf
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" cargo build --locked --release --bin wharf --target $(HOST)
	@install -m 0755 target/$(HOST)/release/wharf target/wharf
	@ls -l target/wharf

.PHONY: run
run: setup build ## Tour: pull an image, run a pod, look at it, remove all (IMAGE=docker.io/library/busybox for a public one)
	@scripts/run-demo.sh target/wharf $(IMAGE)

.PHONY: install
install: ## Install what `make build` has made, the systemd unit and the example configuration (DESTDIR is honoured)
	@test -x target/wharf || { echo "target/wharf is not there: make build, as the user who has cargo" >&2; exit 1; }
	install -D -m 0755 target/wharf $(DESTDIR)/usr/local/bin/wharf
	install -D -m 0644 deploy/wharf.service $(DESTDIR)/etc/systemd/system/wharf.service
	@test -e $(DESTDIR)/etc/wharf/wharf.toml || install -D -m 0644 deploy/wharf.toml $(DESTDIR)/etc/wharf/wharf.toml

.PHONY: deb
deb: build ## Make a Debian package of the binary in target/ with cargo-deb (cargo install cargo-deb)
	CARGO_TARGET_DIR=target/package cargo deb --no-build --no-strip -o target/

.PHONY: test
test: fmt lint unit e2e deny shellcheck ## Everything that CI checks

.PHONY: fmt
fmt: ## Check the format
	cargo fmt --all --check

.PHONY: lint
lint: ## Run clippy, warnings are errors
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: unit
unit: ## Run unit tests, the floor check and the file-length check (as root: some make namespaces)
	@scripts/cargo-test.sh unit

.PHONY: e2e
e2e: ## Run the end-to-end tests as root with real containers, on each handler (HANDLERS="builtin runc crun")
	cargo build --locked --workspace --bins
	WHARF_HANDLERS="$(HANDLERS)" scripts/cargo-test.sh e2e

.PHONY: soak
soak: ## Random work under random kills for an hour (SOAK_SECONDS=600 for less, SOAK_SEED=7 to have one again)
	cargo build --locked --workspace --bins
	WHARF_SOAK_SECONDS=$(or $(SOAK_SECONDS),3600) $(if $(SOAK_SEED),WHARF_SOAK_SEED=$(SOAK_SEED)) \
	  cargo test --locked -p wharf-e2e --test promises -- --nocapture soak::

.PHONY: vm-test
vm-test: ## Run end-to-end tests in a virtual machine: cgroup v2, systemd, Debian's kernel (ARGS: of the tests' binary)
	@scripts/vm-test.sh $(ARGS)

.PHONY: vm-smoke
vm-smoke: ## Run a few end-to-end tests in a small virtual machine, as CI does: about a minute
	@scripts/vm-ci.sh

.PHONY: critest
critest: ## Run critest, where it is installed, on each handler (HANDLERS; flags of critest in ARGS)
	cargo build --locked --workspace --bins
	@for handler in $(HANDLERS); do ./critest.sh $$handler $(ARGS); done

.PHONY: fuzz
fuzz: ## Fuzz each parser of untrusted bytes for some time (FUZZ_SECONDS=10)
	@scripts/fuzz.sh $(or $(FUZZ_SECONDS),10)

.PHONY: deny
deny: ## Check licences, advisories and sources of dependencies with cargo-deny
	@scripts/deny.sh

.PHONY: shellcheck
shellcheck: ## Check the shell scripts
	@if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh deploy/kubernetes/*.sh .ci/run critest.sh; else echo "shellcheck is NOT installed: scripts were not checked"; fi

.PHONY: bench
bench: build ## Measure Wharf beside Debian's containerd, one client, one run (ARGS="--report target/bench --growth 1,50,500")
	cargo build --locked --release -p wharf-e2e --bins
	@scripts/bench.sh target/wharf $(ARGS)

.PHONY: bench-reads
bench-reads: build ## Time lists and statuses with 1,000 containers under churn, one of them stuck (ARGS="--rounds 5")
	cargo build --locked --release -p wharf-e2e --bins
	@scripts/bench.sh target/wharf reads $(ARGS)

.PHONY: profile
profile: build ## Tell where the time of each call goes: processor, page faults, processes, system calls (ARGS="--pods 20")
	cargo build --locked --release -p wharf-e2e --bins
	@scripts/bench.sh target/wharf profile $(ARGS)

.PHONY: bench-lazy
bench-lazy: build ## Time to the first log line of a 1 GB image that is not complete yet, beside a full pull
	WHARF_BIN=$(CURDIR)/target/wharf cargo test --locked --release -p wharf-e2e --test promises -- --ignored --nocapture --exact lazy::time_to_the_first_log_line

.PHONY: bench-network
bench-network: ## Time attaching pods to the built-in network beside CNI's bridge plugin, one by one and 200 at once (PROFILE=dev)
	cargo test --locked --workspace --exclude wharf-e2e --lib --profile $(or $(PROFILE),release) \
	  -- --nocapture --test-threads=1 one_pod_is_attached two_hundred_at_once

.PHONY: clean
clean: ## Remove what was built
	cargo clean
