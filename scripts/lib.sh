# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the build scripts share: where things are, and how a step reports.
# Sourced, not run.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${FUSE_IOMAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fuse-iomap}
LOGS=$CACHE/logs
STAMPS=$CACHE/stamps
export ROOT CACHE LOGS STAMPS
export FUSE_IOMAP_CACHE=$CACHE
export LC_ALL=C.UTF-8
mkdir -p "$CACHE/dl" "$CACHE/src" "$CACHE/build" "$LOGS" "$STAMPS"

# The compilers are Debian's: a toolchain of the user's own, found first in
# PATH, may lack the library source that the kernel needs.
export RUSTC=/usr/bin/rustc
export RUSTDOC=/usr/bin/rustdoc
export RUSTFMT=/usr/bin/rustfmt
export CARGO=/usr/bin/cargo
export CARGO_TARGET_DIR=$CACHE/cargo-target
JOBS=${JOBS:-$(nproc)}

# say TEXT: one line of progress.
say() {
	printf '[%s] %s\n' "$(date +%H:%M:%S)" "$*"
}

# die TEXT: an error that ends the script.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# logged NAME COMMAND...: run COMMAND with its output in $LOGS/NAME.log. When it
# fails, show the end of the log and say which file to read.
logged() {
	local name=$1 log=$LOGS/$1.log status
	shift
	# In a condition, the shell would not stop COMMAND at its first error.
	set +e
	(
		set -e
		"$@"
	) >"$log" 2>&1 </dev/null
	status=$?
	set -e
	if [ "$status" = 0 ]; then
		return 0
	fi
	printf -- '---- last lines of %s\n' "$log" >&2
	grep -E -n '(^|[^a-z_-])(error|Error|ERROR|undefined reference|\*\*\*)' "$log" | tail -n 15 >&2 || true
	printf -- '----\n' >&2
	tail -n 15 "$log" >&2
	die "$name failed; read $log"
}

# hash_of PATH...: one hash over the names and contents of files; directories
# are taken with everything below them, missing paths count as empty.
hash_of() {
	local p
	for p in "$@"; do
		if [ -d "$p" ]; then
			find "$p" -type f -print0 | sort -z | xargs -0r sha256sum
		elif [ -e "$p" ]; then
			sha256sum "$p"
		else
			echo "absent $p"
		fi
	done | sha256sum | cut -d' ' -f1
}

# fresh NAME HASH: has the step NAME already been done for HASH?
fresh() {
	[ -e "$STAMPS/$1" ] && [ "$(cat "$STAMPS/$1")" = "$2" ]
}

# done_for NAME HASH: record that it has.
done_for() {
	printf '%s\n' "$2" >"$STAMPS/$1"
}

# The kernel's version, and its work tree, once scripts/get-source has run.
kernel_tree() {
	local tree
	[ -e "$CACHE/src/current" ] || die "no kernel source yet; run scripts/get-source"
	tree=$(cat "$CACHE/src/current")
	[ -e "$tree/Makefile" ] || die "$tree has gone; remove $CACHE/src/current and run again"
	printf '%s\n' "$tree"
}

# One kernel build or one change of its source at a time.
with_build_lock() {
	local fd
	exec {fd}>"$CACHE/build.lock"
	flock "$fd"
	"$@"
	exec {fd}>&-
}

# kmake BUILD-DIR ARGUMENTS...: make in the kernel tree, with our tools.
kmake() {
	local build=$1 tree
	shift
	tree=$(kernel_tree)
	LIBCLANG_PATH=$(libclang_path) nice make -C "$tree" O="$build" -j"$JOBS" \
		RUSTC=/usr/bin/rustc HOSTRUSTC=/usr/bin/rustc RUSTFMT=/usr/bin/rustfmt \
		CLIPPY_DRIVER=/usr/bin/clippy-driver BINDGEN="$(bindgen_path)" "$@"
}

# bindgen_path: ours, built by scripts/setup, or Debian's.
bindgen_path() {
	if [ -x "$CACHE/tools/bin/bindgen" ]; then
		echo "$CACHE/tools/bin/bindgen"
	else
		echo /usr/bin/bindgen
	fi
}

# libclang_path: the newest libclang there is; the kernel wants 17 or later.
libclang_path() {
	find /usr/lib -maxdepth 3 -path '/usr/lib/llvm-*/lib/libclang.so*' -printf '%h\n' |
		sort -V | tail -n 1
}

# llvm_version: the version of that libclang, for names like clang-19.
llvm_version() {
	libclang_path | sed 's,.*/llvm-\([0-9]*\)/.*,\1,'
}
