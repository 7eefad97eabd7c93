# shellcheck shell=sh
# Packages of any Debian suite, unpacked and not installed, from whatever mirrors this machine takes
# its own from; and `tries`, for whatever else is fetched. Sourced.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Runs a command again when it fails, at most twice: one transfer that breaks off is no reason to give up.
tries() { # COMMAND...
	"$@" && return
	for pause in 5 20; do
		echo "failed, and tried again in $pause s: $*" >&2
		sleep "$pause"
		"$@" && return
	done
	return 1
}

# shellcheck disable=SC2016
sites() { apt-get indextargets --format '$(SITE)' | sort -u; }

# Sets $options, with which apt knows the suite alone, and nothing as installed. A mirror that has no
# such suite is passed over.
suite() { # SUITE DIRECTORY
	mirrors=$(sites)
	# Only lists that were fetched are told of.
	[ -n "$mirrors" ] || { tries apt-get -qq update && mirrors=$(sites); }
	options="-o Dir::Etc::SourceList=$2/sources.list -o Dir::Etc::SourceParts=/dev/null
		-o Dir::State::Lists=$2/lists -o Dir::Cache=$2 -o Dir::Cache::Archives=$2/archives
		-o Dir::State::Status=/dev/null -o APT::Sandbox::User=root
		-o Acquire::Languages=none -o Acquire::Retries=3"
	tries any_mirror "$1" "$2"
}

any_mirror() { # SUITE DIRECTORY
	for mirror in $mirrors; do
		rm -rf "$2"
		mkdir -p "$2/lists/partial" "$2/archives/partial" "$2/debs"
		echo "deb [signed-by=$keyring] $mirror $1 main" >"$2/sources.list"
		# A mirror without the suite is an error, not a warning.
		# shellcheck disable=SC2086
		apt-get -qq $options -o APT::Update::Error-Mode=any update && return
	done
	echo "no mirror has $1" >&2
	return 1
}

unpack() { # DIRECTORY-OF-DEBS ROOT
	for deb in "$1"/*.deb; do
		dpkg-deb -x "$deb" "$2"
	done
}
