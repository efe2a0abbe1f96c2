# The index of what can be done here. `make` lists it.
TIERS ?= pure kernel control-plane cluster
E2E = cargo run --quiet --package sallyport-e2e --

.PHONY: help build check test generate images demo up down demo-standalone bench faults clean-labs

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

images: ## build the images of the operator and the node agent
	@$(E2E) images

demo: ## the origin story in a real kind cluster, which stays up (root)
	@$(E2E) demo

up: ## make that cluster, or use the one that runs, with nothing installed (root)
	@$(E2E) up

down: ## take that cluster away
	@$(E2E) down

demo-standalone: ## the origin story with real programs on a lone gateway (root)
	cargo build --workspace --bins
	@$(E2E) demo-standalone

bench: ## measure, compare with the goals, print a table (root)
	cargo build --quiet --release --workspace --bins
	@target/release/sallyport-e2e bench

faults: ## do to Sallyport what it promises to live through, print a table of what was seen (root)
	@$(E2E) faults

clean-labs: ## remove network namespaces left behind by runs that died
	@$(E2E) sweep
