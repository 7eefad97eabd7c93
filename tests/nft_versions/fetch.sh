#!/bin/sh
# Unpacks the nft of Debian suites, with all libraries it needs, as target/nft/SUITE. Nothing is
# installed: the test starts it with its own dynamic linker. What is there already stays; a suite
# appears as a whole or, with an error, not at all.
#
# Usage: tests/nft_versions/fetch.sh SUITE...
set -eu

cd "$(dirname "$0")/../.."
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages="nftables libnftables1 libnftnl11 libmnl0 libjansson4 libxtables12 libgmp10 libtinfo6
	libbsd0 libmd0 libc6"
# Wherever this machine takes its own packages from; one that has no such suite is passed over.
# shellcheck disable=SC2016
sites() { apt-get indextargets --format '$(SITE)' | sort -u; }
mirrors=$(sites)
# Only lists that were fetched are told of.
[ -n "$mirrors" ] || { apt-get -qq update && mirrors=$(sites); }

download() { # SUITE MIRROR DIRECTORY
	mkdir -p "$3/lists/partial" "$3/archives/partial" "$3/debs"
	echo "deb [signed-by=$keyring] $2 $1 main" >"$3/sources.list"
	options="-o Dir::Etc::SourceList=$3/sources.list -o Dir::Etc::SourceParts=/dev/null
		-o Dir::State::Lists=$3/lists -o Dir::Cache=$3 -o Dir::Cache::Archives=$3/archives
		-o Dir::State::Status=/dev/null -o APT::Sandbox::User=root
		-o Acquire::Languages=none -o Acquire::Retries=3"
	# A mirror without the suite is an error, not a warning.
	# shellcheck disable=SC2086
	apt-get -qq $options -o APT::Update::Error-Mode=any update || return 1
	# The line editor: readline in bullseye, libedit from bookworm on.
	editor=$(apt-cache $options show libnftables1 nftables | grep -oE 'libedit2|libreadline8' | head -n 1)
	# shellcheck disable=SC2086
	(cd "$3/debs" && apt-get -qq $options download $packages "$editor") || return 1
}

for suite in "$@"; do
	root="$PWD/target/nft/$suite"
	[ -d "$root" ] && continue
	work="$PWD/target/nft-work/$suite"
	for mirror in $mirrors none; do
		[ "$mirror" = none ] && echo "no mirror has $suite" >&2 && exit 1
		rm -rf "$work"
		download "$suite" "$mirror" "$work" && break
	done
	for deb in "$work"/debs/*.deb; do
		dpkg-deb -x "$deb" "$work/root"
	done
	mkdir -p "$(dirname "$root")"
	mv "$work/root" "$root"
	rm -rf "$work"
	echo "$suite: $root"
done
