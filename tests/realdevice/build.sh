#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the driver around the real crates: VARIANT(s) locked, dup, refcount (default: all), in the profiles
# release (debug info) and stripped (fat LTO, no symbols). Prints the path of each binary. Exits 4 where cargo is
# missing, 5 where the distribution's is too old.
#   build.sh [--target-dir DIR] [--profile release|stripped] [VARIANT...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=$here/../../.dev/realdevice
profiles=(release stripped)
variants=()
while (($#)); do
	case $1 in
	--target-dir) target=${2:?--target-dir needs a directory} && shift 2 ;;
	--profile) profiles=("${2:?--profile needs a name}") && shift 2 ;;
	locked | dup | refcount) variants+=("$1") && shift ;;
	*) echo "build.sh: unknown argument $1 (see its head)" >&2 && exit 2 ;;
	esac
done
((${#variants[@]})) || variants=(locked dup refcount)
command -v cargo >/dev/null || { echo "build.sh: cargo 1.81 or newer is needed (https://rustup.rs)" >&2 && exit 4; }
version=$(cargo --version | cut -d' ' -f2)
if [[ $(printf '1.81.0\n%s\n' "$version" | sort -V | head -1) != 1.81.0 ]]; then
	echo "build.sh: cargo is $version, 1.81 or newer is needed (Debian 12: cargo-web, in cargo's place; https://rustup.rs)" >&2
	exit 5
fi
mkdir -p "$target"
target=$(cd "$target" && pwd)
for v in "${variants[@]}"; do
	for p in "${profiles[@]}"; do
		# One directory per variant: they hold different versions of the same crates.
		nice cargo build --quiet --manifest-path "$here/$v/Cargo.toml" --profile "$p" --target-dir "$target/$v" -j "${XD_JOBS:-$(nproc)}" >&2
		echo "$target/$v/$p/rd-$v"
	done
done
