#!/bin/sh
# Unpacks the nft of Debian suites, with all libraries it needs, as target/nft/SUITE. Nothing is
# installed: the test starts it with its own dynamic linker. What is there already stays; a suite
# appears as a whole or, with an error, not at all.
#
# Usage: tests/nft_versions/fetch.sh SUITE...
set -eu

cd "$(dirname "$0")/../.."
. tests/debian.sh
packages="nftables libnftables1 libnftnl11 libmnl0 libjansson4 libxtables12 libgmp10 libtinfo6
	libbsd0 libmd0 libc6"

for suite in "$@"; do
	root="$PWD/target/nft/$suite"
	[ -d "$root" ] && continue
	work="$PWD/target/nft-work/$suite"
	suite "$suite" "$work"
	# The line editor: readline in bullseye, libedit from bookworm on.
	# shellcheck disable=SC2086
	editor=$(apt-cache $options show libnftables1 nftables | grep -oE 'libedit2|libreadline8' | head -n 1)
	# shellcheck disable=SC2086
	(cd "$work/debs" && tries apt-get -qq $options download $packages "$editor")
	unpack "$work/debs" "$work/root"
	mkdir -p "$(dirname "$root")"
	mv "$work/root" "$root"
	rm -rf "$work"
	echo "$suite: $root"
done
