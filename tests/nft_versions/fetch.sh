#!/bin/sh
# Unpacks the nft of a Debian suite, with all libraries it needs, below target/nft/SUITE. Nothing is
# installed: the test starts it with its own dynamic linker.
#
# Usage: tests/nft_versions/fetch.sh [SUITE...]
set -eu

cd "$(dirname "$0")/../.."
suites="${*:-trixie sid}"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages="nftables libnftables1 libnftnl11 libmnl0 libjansson4 libxtables12 libedit2 libgmp10
	libtinfo6 libbsd0 libmd0 libc6"

for suite in $suites; do
	root="$PWD/target/nft/$suite"
	apt="$root.apt"
	rm -rf "$root" "$apt"
	mkdir -p "$root" "$apt/lists/partial" "$apt/archives/partial" "$apt/debs"
	echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" >"$apt/sources.list"
	options="-o Dir::Etc::SourceList=$apt/sources.list -o Dir::Etc::SourceParts=/dev/null
		-o Dir::State::Lists=$apt/lists -o Dir::Cache=$apt -o Dir::Cache::Archives=$apt/archives
		-o Dir::State::Status=/dev/null -o APT::Sandbox::User=root"
	# shellcheck disable=SC2086
	apt-get -qq $options update
	# shellcheck disable=SC2086
	(cd "$apt/debs" && apt-get -qq $options download $packages)
	for deb in "$apt"/debs/*.deb; do
		dpkg-deb -x "$deb" "$root"
	done
	rm -rf "$apt"
	echo "$suite: $root"
done
