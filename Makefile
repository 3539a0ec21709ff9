# Rust, a C compiler and Python with pip are assumed; everything else that is run is fetched into .tools by scripts/tools.
SHELL := /bin/sh
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help build demo test lint bench fuzz tools deny clean

# Seconds for each target of `make fuzz`. A full run is 600.
FUZZ_SECONDS ?= 60

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

build: ## Build pinion for release: target/release/pinion
	cargo build --release --locked

demo: ## Render the examples against a registry in this process, push newer tags, render again
	scripts/tools helm kustomize
	cargo build --locked --bin pinion --example demo
	cargo run --quiet --locked --example demo

test: tools lint ## Everything that CI checks
	cargo test --locked

lint: ## Formatting and clippy
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

bench: ## Measure, against peers where there are any
	scripts/tools helm kustomize skopeo registry docker-registry
	cargo bench --locked

fuzz: ## Look for inputs that break the laws of tests/laws; FUZZ_SECONDS=600 is a full run
	command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked --root .tools
	cargo fuzz build --sanitizer none
	for target in archive placeholder; do \
	  mkdir -p fuzz/target/corpus/$$target && \
	  cargo fuzz run --sanitizer none $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
	    -dict=fuzz/$$target.dict -max_total_time=$(FUZZ_SECONDS) -timeout=10 || exit; \
	done

tools: ## Fetch the tools that the tests run into .tools/bin
	scripts/tools --all

deny: ## Check licences, advisories and sources of the dependencies
	command -v cargo-deny >/dev/null || cargo install cargo-deny --locked --root .tools
	cargo deny check

clean: ## Remove what was built and fetched
	cargo clean
	rm -rf .tools
