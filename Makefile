# The index of what can be done here. `make` lists it.
TIERS ?= pure kernel control-plane cluster
# Inputs of each target that `make fuzz` tries.
RUNS ?= 1000000
# Scenes that `make differential` plays beside each variant of iptables.
SCENES ?= 2000
TARGET = $(or $(CARGO_TARGET_DIR),target)
E2E = cargo run --quiet --package sallyport-e2e --

.PHONY: help build check test generate images demo up down demo-standalone bench faults differential fuzz clean-labs

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

build: ## build all programs, optimised
	cargo build --workspace --release

check: ## formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings

test: ## run tests; TIERS="pure kernel" chooses which (kernel needs root)
	@cargo build --quiet --workspace --all-features --bins --tests
	@$(TARGET)/debug/sallyport-e2e test --tiers "$(TIERS)"

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
	@$(TARGET)/release/sallyport-e2e bench

faults: ## do to Sallyport what it promises to live through, print a table of what was seen (root)
	@$(E2E) faults

differential: ## hold what is said of others' rules at random to what packets do, in SCENES scenes (root)
	@cargo build --quiet --workspace --all-features --bins --tests
	SCENES=$(SCENES) cargo test --quiet --workspace --all-features --test kernel foreign_rules_at_random:: -- --nocapture

fuzz: ## try RUNS inputs on what reads files and kernels, led by coverage (cargo-fuzz, a C++ compiler)
	@cp Cargo.lock node-agent/fuzz/
	@for target in manifests save firewall; do \
	  mkdir -p node-agent/fuzz/corpus/$$target && \
	  (cd node-agent && cargo fuzz run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	    -runs=$(RUNS) -max_len=4096 -timeout=10 -verbosity=0 -print_final_stats=1) || exit 1; \
	done

clean-labs: ## remove network namespaces left behind by runs that died
	@$(E2E) sweep
