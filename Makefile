# Two commands do all set-up on a fresh Debian machine: `make demo` and `make test`.
# Both need root (network namespaces, nf_tables) and a Rust toolchain. `make check` is for between.

SHELL := /bin/bash

# Libraries to build against, and the programs tests compare with or live beside.
DEBIAN_BUILD_PACKAGES := gcc libc6-dev pkg-config libnftnl-dev libmnl-dev
DEBIAN_TEST_PACKAGES  := nftables iproute2 conntrack iptables procps util-linux strace dnsmasq nginx-light crun python3-pip

.PHONY: help demo check test kernels record lint build release binary plugin nft bench setup clean helm promtool image sbom deny advisories

help: ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: ## Install the Debian packages that are missing
	@missing=$$(for p in $(DEBIAN_BUILD_PACKAGES) $(DEBIAN_TEST_PACKAGES); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    echo "installing: $$missing"; . tests/debian.sh; export DEBIAN_FRONTEND=noninteractive; \
	    tries apt-get update -qq && tries apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

build: setup ## Build the binary for development
	cargo build --locked

demo: setup ## Show it working on namespaces of its own, in under a minute once built
	cargo test --locked --test demo -- --show

# In a user namespace of its own: there nf_tables is ours without being root, and no network is left.
CHECKS := behaviours claims config counts engine golden layering manifest reference render wire
check: lint ## Lints, pure tests, goldens, layers: no root, no network, two minutes once the dependencies are built
	unshare --map-root-user --net sh -c 'ip link set lo up && exec "$$@"' - \
	    cargo test --locked --offline --lib $(CHECKS:%=--test %)

test: setup helm promtool nft ## All tests
	cargo test --locked --no-fail-fast

record: setup ## Ten minutes of clients that write down everything while all changes and fails
	KUBEWEIR_RECORD_SECONDS=$${KUBEWEIR_RECORD_SECONDS:-600} cargo test --locked --test record -- --nocapture

lint: $(if $(filter check,$(MAKECMDGOALS)),,setup) ## Formatting, lints, documentation
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo check --locked --no-default-features --features desk --bin kubectl-kubeweir
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# Each is there as a whole or not at all; a download that fails fails the tests.
NFT_SUITES := bullseye bookworm trixie sid
nft: $(NFT_SUITES:%=target/nft/%) ## The nft of each Debian suite, for the test of listings

target/nft/%: tests/nft_versions/fetch.sh
	tests/nft_versions/fetch.sh $*
	touch $@

kernels: DEBIAN_TEST_PACKAGES += qemu-system-x86 cpio zstd kmod
kernels: setup ## Debian's kernels, in guests: what runs on each, as a table
	tests/kernels/run $(KERNELS)

bench: setup ## The benchmarks behind benches/README.md
	cargo bench --locked --bench engine --bench functions

clean: ## Remove what was built
	cargo clean

# The version that is built: the tag's, with the distance to it; before any tag, Cargo.toml's.
VERSION := $(or $(patsubst v%,%,$(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null)),$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1))
COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
KUBERNETES_RELEASE := $(shell sed -n 's/^pub const KUBERNETES_RELEASE: &str = "\(.*\)";/\1/p' src/config/version.rs)
# The same bytes wherever it is built: no path of this machine in the binary, the time of the commit in the image.
REPRODUCIBLE := RUSTFLAGS="--remap-path-prefix=$(CURDIR)=/src --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}=/cargo"
BUILD_OF := KUBEWEIR_VERSION=v$(KUBERNETES_RELEASE)+kubeweir.$(VERSION) KUBEWEIR_COMMIT=$(COMMIT)

release: setup binary ## Build the binary as it is shipped

# The same, where all packages are installed: in the Dockerfile.
binary:
	$(BUILD_OF) $(REPRODUCIBLE) cargo build --locked --release --no-default-features --features agent --bin kubeweir

plugin: ## kubectl's plug-in as it is shipped, target/release/kubectl-kubeweir; on any system that kubectl is for
	$(REPRODUCIBLE) cargo build --locked --release --no-default-features --features desk --bin kubectl-kubeweir

helm: target/tools/helm ## Helm, for the chart's tests

target/tools/helm: tests/chart/install-helm
	tests/chart/install-helm $(@D)

promtool: target/tools/promtool ## promtool, for the tests of the chart's alerts

target/tools/promtool: tests/chart/install-promtool
	tests/chart/install-promtool $(@D)

image: release ## The container image as an OCI archive, target/image/kubeweir.tar, without a registry
	rm -rf target/image && mkdir -p target/image
	tests/image/rootfs target/release/kubeweir target/image/root
	find target/image/root ! -type d -printf '%10s  /%P\n'
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) REVISION=$(COMMIT) \
	    tests/image/oci target/image/root target/image/kubeweir.tar kubeweir $(VERSION)

target/tools/bin/cargo-cyclonedx:
	cargo install --quiet --locked --root target/tools cargo-cyclonedx@0.5.9

sbom: target/tools/bin/cargo-cyclonedx ## The bill of materials, target/image/kubeweir.cdx.json
	mkdir -p target/image
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) target/tools/bin/cargo-cyclonedx cyclonedx --no-default-features --features agent --format json --spec-version 1.5 --override-filename kubeweir.cdx
	sed "s|path+file://$(CURDIR)|path+file:///src|" kubeweir.cdx.json >target/image/kubeweir.cdx.json && rm kubeweir.cdx.json

target/tools/bin/cargo-deny:
	cargo install --quiet --locked --root target/tools cargo-deny@0.20.2

DENY := target/tools/bin/cargo-deny --all-features --config .cargo/deny.toml check --hide-inclusion-graph

deny: target/tools/bin/cargo-deny ## Licences, bans and sources of the dependencies
	$(DENY) licenses bans sources

advisories: target/tools/bin/cargo-deny ## Known vulnerabilities of the dependencies; fetches RustSec's database from GitHub
	$(DENY) advisories
