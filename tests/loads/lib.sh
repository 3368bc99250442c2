# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the loads share: saying how a case went, and filesystems of several kinds
# that are made, mounted, unmounted and checked in the same way. Sourced.
#
# A kind is one of
#
#   kernel-ext4, kernel-xfs   the kernel's own, to see that the load itself is right
#   ext4                      our ext4 server
#   lab-POLICY                lab with one of its ways to map files for writing; see
#                             lab_options for what is added to each
#
# Behind the name of one of our servers, "+HOW" says how it uses the kernel's cache
# of mappings (its option --cache): ext4+off, lab-cow+eager. More options follow
# after commas: ext4+replies,batch-mappings=0,batch-ioend=off. With "+uring" at the
# end, requests go over io_uring: ext4+uring, lab-cow+eager+uring.
#
# LOADS=long asks for full sizes; otherwise they suit a test run of minutes.

# shellcheck disable=SC2034
TOOLS=$FI_CACHE/tools/bin
LOADS=${LOADS:-short}
SERVER_ERRORS=/tmp/server.err
# Set by fs_mount: how it was mounted.
SERVER=

# size SHORT LONG: a number for this run.
size() {
	if [ "$LOADS" = long ]; then echo "$2"; else echo "$1"; fi
}

ok() {
	echo "ok - $*"
}

# not_ok NAME REASON
not_ok() {
	echo "not ok - $1: $(tr '\n' ' ' <<<"$2")"
}

note() {
	# shellcheck disable=SC2001
	sed 's/^/# /' <<<"$*"
}

# check NAME COMMAND...: one case; the end of what the command says is the reason.
check() {
	local name=$1 said
	shift
	if said=$("$@" 2>&1); then
		ok "$name"
	else
		not_ok "$name" "$* failed: $(tail -n 5 <<<"$said" | tail -c 600)"
		return 1
	fi
}

# fs_make KIND DEVICE [OPTIONS]: an empty filesystem.
fs_make() {
	local kind=$1 device=$2
	shift 2
	case ${kind%%+*} in
	kernel-ext4 | ext4) mke2fs -q -F -t ext4 -b "${BLOCK_SIZE:-4096}" "$@" "$device" ;;
	kernel-xfs) mkfs.xfs -q -f "$@" "$device" ;;
	lab-*) wipefs -q -a "$device" ;;
	*)
		echo "unknown kind of filesystem '$kind'"
		return 1
		;;
	esac
}

# fs_mount KIND DEVICE DIRECTORY [OPTIONS]: the options are the server's or mount's.
fs_mount() {
	local kind=$1 device=$2 directory=$3 how option
	shift 3
	mkdir -p "$directory"
	SERVER=
	if [[ $kind == *+uring ]]; then
		echo Y >/sys/module/fuse/parameters/enable_uring || return 1
		set -- --uring "$@"
		kind=${kind%+uring}
	fi
	if [[ $kind == *+* ]]; then
		IFS=, read -ra how <<<"${kind#*+}"
		for option in "${how[@]:1}"; do
			set -- "--${option%%=*}" "${option#*=}" "$@"
		done
		set -- --cache "${how[0]}" "$@"
		kind=${kind%+*}
	fi
	case $kind in
	kernel-*) mount -t "${kind#kernel-}" "$@" "$device" "$directory" ;;
	ext4) server_mount ext4 "$directory" "$FI_BIN/ext4" --foreground --require-iomap "$@" "$device" "$directory" ;;
	lab-*)
		# shellcheck disable=SC2046
		server_mount lab "$directory" "$FI_BIN/lab" serve --device "$device" \
			$(lab_options "${kind#lab-}") "$@" "$directory"
		;;
	esac
}

# lab_options POLICY: each with what makes it hard on the kernel.
lab_options() {
	case $1 in
	in-place) echo --policy in-place --longest 3 --guards ;;
	unwritten) echo --policy unwritten --longest 7 --guards --extra 4 --poison-again ;;
	cow) echo --policy cow --cow-always --longest 5 --guards --poison-again ;;
	cow-mapped) echo --policy cow --cow-always --cow-mapped --longest 5 --want-end ;;
	delalloc) echo --policy delalloc --extra 8 --longest 6 --guards --poison-again ;;
	direct) echo --policy unwritten --direct-io --extra 3 --poison-again ;;
	small) echo --policy unwritten --blksize 512 --longest 9 --poison-again ;;
	esac
}

# server_mount NAME DIRECTORY COMMAND...: start a server and wait for its mount.
server_mount() {
	local name=$1 directory=$2
	shift 2
	"$@" >>"$SERVER_ERRORS" 2>&1 &
	SERVER=$!
	for _ in $(seq 600); do
		if mountpoint -q "$directory"; then
			return 0
		fi
		if ! kill -0 "$SERVER" 2>/dev/null; then
			break
		fi
		sleep 0.05
	done
	echo "the $name server did not mount: $(tail -n 3 "$SERVER_ERRORS")"
	return 1
}

# fs_umount DIRECTORY: unmount, and wait until the server has ended.
fs_umount() {
	umount "$1" || return 1
	[ -n "$SERVER" ] || return 0
	for _ in $(seq 600); do
		if ! kill -0 "$SERVER" 2>/dev/null; then
			local status=0
			wait "$SERVER" || status=$?
			SERVER=
			[ "$status" = 0 ] && return 0
			echo "the server ended with status $status: $(tail -n 3 "$SERVER_ERRORS")"
			return 1
		fi
		sleep 0.05
	done
	echo "the server did not end within 30 s"
	kill -9 "$SERVER"
	return 1
}

# fs_check KIND DEVICE: is the unmounted filesystem in order?
fs_check() {
	case ${1%%+*} in
	kernel-ext4 | ext4) e2fsck -fn "$2" ;;
	kernel-xfs) xfs_repair -n "$2" ;;
	lab-*) ;;
	esac
}

# manifest DIRECTORY: everything that a reader can see of a tree, with the bytes.
manifest() {
	(
		cd "$1" || exit 1
		find . -path ./lost+found -prune -o \
			\( -type d -printf '%y %m %U %G %n %p\n' -o -printf '%y %m %U %G %n %s %p %l\n' \) | sort
		find . -path ./lost+found -prune -o -type f -print0 | sort -z | xargs -0r sha256sum
	)
}

# drop_caches: what is read from now on comes from the disk.
drop_caches() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
}

# fio_verified NAME OPTIONS...: one run of fio whose jobs verify what they wrote; its JSON says
# whether there were errors.
fio_verified() {
	local name=$1 status=0 said
	shift
	timeout "$(size 200 1200)" fio --aux-path=/tmp --verify=crc32c --verify_fatal=1 --verify_dump=0 \
		--randseed=7 --thread --allow_mounted_write=0 --output-format=json --output=/tmp/fio.json "$@" \
		>/tmp/fio.err 2>&1 || status=$?
	said=$(python3 - "$name" <<-'END'
		import json, sys
		text = open("/tmp/fio.json").read()
		jobs = json.loads(text[text.index("{"):])["jobs"]
		errors = [f"{job['jobname']}: error {job['error']}" for job in jobs if job["error"]]
		written = sum(job["write"]["io_bytes"] for job in jobs)
		read = sum(job["read"]["io_bytes"] for job in jobs)
		if not jobs or not read:
		    errors.append("nothing was read back")
		print("; ".join(errors) or f"{len(jobs)} jobs, {written >> 20} MiB written, {read >> 20} MiB read")
		sys.exit(bool(errors))
	END
	) || status=1
	if [ "$status" = 0 ]; then
		ok "$name: $said"
	else
		not_ok "$name" "exit status $status: $said $(tail -n 3 /tmp/fio.err)"
	fi
}
