# Two commands do all set-up on a fresh Debian machine: `make demo` and `make test`.
# Both need root (network namespaces, nf_tables) and a Rust toolchain.

SHELL := /bin/bash

# Libraries to build against, and the programs tests compare with or live beside.
DEBIAN_BUILD_PACKAGES := gcc libc6-dev pkg-config libnftnl-dev libmnl-dev
DEBIAN_TEST_PACKAGES  := nftables iproute2 conntrack iptables procps

.PHONY: help demo test lint build release versions bench setup clean

help: ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: ## Install the Debian packages that are missing
	@missing=$$(for p in $(DEBIAN_BUILD_PACKAGES) $(DEBIAN_TEST_PACKAGES); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    echo "installing: $$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

build: setup ## Build the binary for development
	cargo build --locked

release: setup ## Build the binary as it is shipped
	cargo build --locked --release

demo: setup ## Show it working on namespaces of its own, in under a minute once built
	cargo test --locked --test demo -- --show

test: setup ## All tests
	cargo test --locked --no-fail-fast

lint: setup ## Formatting, lints, documentation
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

versions: setup ## List the table with the nft of newer Debian suites too
	tests/nft_versions/fetch.sh
	cargo test --locked --test nft_versions -- --include-ignored

bench: setup ## The benchmarks behind benches/README.md
	cargo bench --locked

clean: ## Remove what was built
	cargo clean
