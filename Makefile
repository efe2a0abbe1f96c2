# The index of what can be done here. `make` lists it.
TIERS ?= pure kernel
E2E = cargo run --quiet --package sallyport-e2e --

.PHONY: help build check test generate demo-standalone bench clean-labs

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

build: ## build all programs, optimised
	cargo build --workspace --release

check: ## formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings

test: ## run tests; TIERS="pure kernel" chooses which (kernel needs root)
	@$(E2E) test --tiers "$(TIERS)"

generate: ## write the files that are generated from the types
	UPDATE=1 cargo test --quiet --package sallyport-api --test manifest

demo-standalone: ## the origin story with real programs on a lone gateway (root)
	cargo build --quiet --package sallyport-node-agent --package sallyport-e2e
	@$(E2E) demo-standalone

bench: ## measure, compare with the goals, print a table (root)
	cargo build --quiet --release --package sallyport-node-agent --package sallyport-e2e
	@cargo run --quiet --release --package sallyport-e2e -- bench

clean-labs: ## remove network namespaces left behind by runs that died
	@$(E2E) sweep
