# Rust, a C compiler and Python with pip are assumed; everything else that is run is fetched into .tools by scripts/tools.
SHELL := /bin/sh
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help build helm-worker demo demo-registry test e2e generate lint soak bench fuzz fuzz-sandbox tools deny clean

# Seconds for each target of `make fuzz`. A full run is 600.
FUZZ_SECONDS ?= 60

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

build: ## Build pinion for release: target/release/pinion
	cargo build --release --locked

helm-worker: ## Build Helm as a warm worker, where Go is: .tools/bin/helm-worker
	scripts/tools helm-worker

demo: ## Render the examples, push newer tags, stop the registry: what Pinion does, in a minute
	@scripts/build-demo
	@target/debug/examples/demo

demo-registry: ## Run the demo's registry, to try pinion by hand: see the tour in README.md
	@scripts/build-demo
	@target/debug/examples/demo serve

test: tools lint ## Everything that CI checks
	cargo test --locked
	target/debug/examples/demo >target/demo.txt && ! grep -E '.{101}' target/demo.txt
	cd helm-worker && PATH="$$PATH:$(CURDIR)/.tools/go/go/bin" CGO_ENABLED=0 go test ./...

e2e: ## Install the chart into a real Argo CD and drive it; E2E=NAME runs the scenarios with that name
	scripts/tools --e2e
	cargo test --locked --test e2e -- $(E2E)

generate: ## Write plugin.yaml, the chart's copy and docs/parameters.md from the table of parameters; the chart's README from its values
	PINION_BLESS=1 cargo test --locked --test pinion generated::
	scripts/chart-readme

lint: ## Formatting and clippy
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

soak: ## Look for what leaks from one render to the next, for long: 200,000 renders of one worker
	scripts/tools helm-worker
	PINION_SOAK=200000 cargo test --locked --test pinion worker::nothing_leaks -- --nocapture

bench: ## Measure, against peers where there are any
	scripts/tools helm kustomize helm-worker skopeo registry docker-registry
	cargo bench --locked

fuzz: ## Look for inputs that break the laws of tests/properties; FUZZ_SECONDS=600 is a full run
	command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked --root .tools
	cargo fuzz build --sanitizer none
	for target in archive placeholder; do \
	  mkdir -p fuzz/target/corpus/$$target && \
	  cargo fuzz run --sanitizer none $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
	    -dict=fuzz/$$target.dict -max_total_time=$(FUZZ_SECONDS) -timeout=10 || exit; \
	done

fuzz-sandbox: ## Look for charts and kustomizations that lead out of the sandbox; FUZZ_SECONDS=1800 is a full run
	scripts/tools helm kustomize helm-worker
	PINION_FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --locked --test pinion sandbox::random -- --nocapture

tools: ## Fetch the tools that the tests run into .tools/bin
	scripts/tools --all

deny: ## Check licences, advisories and sources of the dependencies
	command -v cargo-deny >/dev/null || cargo install cargo-deny --locked --root .tools
	cargo deny check

clean: ## Remove what was built and fetched
	cargo clean
	rm -rf .tools
