# Rust, a C compiler and Python with pip are assumed; everything else that is run is fetched into .tools by scripts/tools.
SHELL := /bin/sh
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help build demo test lint bench tools deny clean

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

tools: ## Fetch the tools that the tests run into .tools/bin
	scripts/tools --all

deny: ## Check licences, advisories and sources of the dependencies
	command -v cargo-deny >/dev/null || cargo install cargo-deny --locked --root .tools
	cargo deny check

clean: ## Remove what was built and fetched
	cargo clean
	rm -rf .tools
