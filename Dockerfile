# The image, built from source: `docker buildx build --platform linux/amd64,linux/arm64 .`
# With no registry at hand, `make image` makes the same one from the binary in target/.
ARG RUST=1.95
FROM rust:${RUST}-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends libmnl-dev libnftnl-dev make pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# As CI says them: the tag without its v, and its commit. Without them, Cargo.toml's version.
ARG VERSION=
ARG COMMIT=
RUN make binary ${VERSION:+VERSION="$VERSION"} COMMIT="$COMMIT" \
 && tests/image/rootfs target/release/kubeweir /rootfs

# The binary and the libraries it is linked with; no shell, no package manager, no other program.
FROM scratch
ARG VERSION=
ARG COMMIT=
LABEL org.opencontainers.image.title="kubeweir" \
      org.opencontainers.image.description="A kube-proxy that programs nftables over netlink" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
COPY --from=build /rootfs/ /
ENTRYPOINT ["/usr/local/bin/kube-proxy"]
