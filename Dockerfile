# The image, built from source: `docker buildx build --platform linux/amd64,linux/arm64 .`
# With no registry at hand, `make image` makes the same one from the binary in target/.
ARG RUST=1.95
FROM rust:${RUST}-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends libmnl-dev libnftnl-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The version that --version reports after the release of Kubernetes; the tag, in CI.
ARG KUBEWEIR_VERSION=
ARG KUBEWEIR_COMMIT=
RUN KUBEWEIR_VERSION="$KUBEWEIR_VERSION" KUBEWEIR_COMMIT="$KUBEWEIR_COMMIT" \
    cargo build --locked --release --bin kubeweir \
 && tests/image/rootfs target/release/kubeweir /rootfs

# The binary and the libraries it is linked with; no shell, no package manager, no other program.
FROM scratch
LABEL org.opencontainers.image.title="kubeweir" \
      org.opencontainers.image.description="A kube-proxy that programs nftables over netlink" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /rootfs/ /
ENTRYPOINT ["/usr/local/bin/kube-proxy"]
