# SPDX-License-Identifier: GPL-2.0
#
# The front door. Every target is a script in scripts/ that can be run alone.

MAKEFLAGS += --no-print-directory
export LINUX LINUX_TARBALL FUSE_IOMAP_CACHE JOBS BENCH BENCH_VM BENCH_ROUNDS
export BASE SERIES_DIR SERIES_OPTIONS SERIES_WRAP SERIES_OUTPUT STEPS CONFIGS
export FSTESTS FSTESTS_ARGS FSTESTS_VM FSTESTS_FSTYP FSTESTS_OPTIONS FSTESTS_SIZE FSTESTS_TIMEOUT

.PHONY: help run example test test-long bench bench-quick fstests lint kunit kernel series series-check build servers setup source sync clean

help:
	@echo 'FUSE file I/O through fs/iomap, written in Rust, for Linux 7.3'
	@echo
	@echo '  make run                 build everything, boot a VM, show the demonstration'
	@echo '  make example             the example server of the library on a disk, in a VM'
	@echo '  make test [ONLY=NAMES]   everything that is tested; last line "N passed, N failed"'
	@echo '  make test-long [ONLY=…]  the loads in full size, an hour or more'
	@echo '  make bench               the benchmark, all of it: tables and pictures for Documentation/'
	@echo '  make bench-quick         its most important rows, in four minutes'
	@echo '  make fstests FSTESTS=TREE  a built xfstests on our ext4 (FSTESTS_ARGS="-g quick")'
	@echo '  make lint                rustfmt, clippy, checkpatch, sparse, shellcheck'
	@echo '  make kunit               the unit tests inside the kernel, on User Mode Linux'
	@echo '  make kernel LINUX=TREE   put the work on a branch of your own kernel tree (git)'
	@echo '  make series [BASE=v7.3]  the work as patches for the kernel lists (SERIES_DIR=DIR)'
	@echo '  make series-check        apply and build them one by one (STEPS=3-5 CONFIGS="m off")'
	@echo '  make build               the kernel and the user-space parts, without running them'
	@echo '  make clean               remove what was built (not the downloads)'
	@echo
	@echo '  LINUX=TREE               take the kernel source from a tree of Linux 7.3.x'
	@echo '  LINUX_TARBALL=FILE       or from a tar archive or Debian package'
	@echo '  BENCH_VM=um|qemu|kvm     what the benchmark runs in (default um: User Mode Linux)'
	@echo '  FUSE_IOMAP_CACHE=DIR     where all is built (default ~/.cache/fuse-iomap)'
	@echo
	@echo 'For make run and make test be root on Debian 12 or later: packages are installed.'

setup:
	@scripts/setup

source: setup
	@scripts/get-source

sync: source
	@scripts/sync-tree

build: sync servers
	@scripts/build-kernel x86

servers: setup
	@scripts/build-servers

run: build
	@scripts/run-demo

example: sync servers
	@scripts/example

test: setup
	@scripts/test $(ONLY)

test-long: setup
	@scripts/test --long $(ONLY)

bench: setup
	@scripts/bench

bench-quick: setup
	@BENCH=quick scripts/bench

fstests: setup
	@scripts/fstests

lint: sync
	@scripts/lint

kunit: sync
	@scripts/kunit

kernel:
	@scripts/kernel-branch

# What the patches are made against is the source in the cache, or a tree of yours.
series:
	@[ -n "$(LINUX)" ] || scripts/get-source
	@scripts/series

series-check: sync
	@scripts/series-check

clean:
	@scripts/clean
