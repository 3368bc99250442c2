#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The benchmark inside the guest: every contender does every row, some times over.

    guest.py DEVICE [--profile quick|full] [--rounds N] [--rows GLOB,...]
             [--contenders NAME,...] [--repeat N] [--shrink N] [--seconds N]

Contenders take turns, so that what drifts hits all of them. Each result is one
line: "@" and a JSON object. tests/bench/README.md says what is in it.
"""

import argparse
import ctypes
import fnmatch
import json
import mmap
import os
import pathlib
import subprocess
import sys
import time
import tty

sys.dont_write_bytecode = True

import contenders  # noqa: E402
import rows  # noqa: E402
from contenders import MOUNT, Impossible, run  # noqa: E402

FIO = [
    "fio", "--output-format=json", "--thread", "--group_reporting", "--fallocate=none",
    "--invalidate=0", "--randrepeat=1", "--gtod_reduce=1", "--allow_mounted_write=1",
]  # fmt: skip
# A row that takes longer has failed.
TIMEOUT = 900
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def say(**record):
    print("@" + json.dumps(record), flush=True)


def drop_caches(what):
    """1: pages; 3: names and inodes, and with those all mappings, as well."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text(f"{what}\n")


class Clock:
    """How much processor time the guest has taken between two moments, which fio tells.

    Starting fio takes longer than many a row, so it is asked to run a command itself, right before
    and right after its work. What that command costs is known, and taken off.
    """

    def __init__(self):
        self.terminal = None
        self.cost = 0
        # How long the guest runs and how much of that its processor has slept, in s.
        self.command = "read -r up idle </proc/uptime; echo $up $idle"
        if os.environ.get("FI_ACCEL") == "uml":
            # The host knows, see tests/vm/uml.py. Its answers wait until they are read.
            self.terminal = os.open("/dev/tty2", os.O_RDWR | os.O_NOCTTY)
            tty.setraw(self.terminal)
            self.command = "printf . >/dev/tty2"

    def arguments(self, first="true"):
        """For one job of fio. The command `first` is run before it, and not measured."""
        return [f"--exec_prerun={{ {first}; {self.command}; }}", f"--exec_postrun={{ {self.command}; }}"]

    def taken(self, names, threads=1):
        """ns that fio's jobs of these names took in its last run, one after the other."""
        if self.terminal is None:
            return sum(
                self._busy(f"{name}.postrun.txt") - self._busy(f"{name}.prerun.txt") - self.cost
                for name in names
            )
        answers = b""
        while answers.count(b"\n") < 2 * threads * len(names):
            answers += os.read(self.terminal, 4096)
        times = [int(line) for line in answers.split()]
        # From the start of a job's first thread to the end of its last one.
        starts, ends = times[:: 2 * threads], times[2 * threads - 1 :: 2 * threads]
        return sum(ends) - sum(starts) - self.cost * len(names)

    @staticmethod
    def _busy(path):
        """The time that the processor was not idle."""
        up, idle = (float(word) for word in pathlib.Path(path).read_text(encoding="ascii").split())
        return int((up - idle) * 1e9)


def fallocate(descriptor, mode, offset, length):
    """fallocate(2), without what the C library does instead where it is not supported."""
    if libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        number = ctypes.get_errno()
        raise OSError(number, f"fallocate: {os.strerror(number)}")


def fill(path, size):
    """Preallocates a file: `size` bytes, or all that there is."""
    with open(path, "wb") as file:
        if size:
            fallocate(file.fileno(), 0, 0, size)
            return
        offset, piece = 0, 1 << 28
        while piece >= 4096:
            try:
                fallocate(file.fileno(), 0, offset, piece)
                offset += piece
            except OSError:
                piece //= 2


def touch(path, row):
    """Reads or overwrites a block in each MiB of a file, so that all know where its few extents are."""
    flags = (os.O_RDWR if row.writes else os.O_RDONLY) | (os.O_DIRECT if row.direct else 0)
    descriptor = os.open(path, flags)
    # Aligned, as direct I/O wants it.
    block = mmap.mmap(-1, 4096)
    try:
        for offset in range(0, os.fstat(descriptor).st_size, rows.MIB):
            os.preadv(descriptor, [block], offset)
            if row.writes:
                os.pwritev(descriptor, [block], offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fio(path, arguments, repeat=1):
    """One run of fio with as many equal jobs, one after the other: what it says about each."""
    words = list(FIO)
    for number in range(repeat):
        words += [f"--name=job{number}", f"--filename={path}", *arguments, "--stonewall"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    start = done.stdout.find("{")
    try:
        jobs = json.loads(done.stdout[start:])["jobs"]
    except (ValueError, LookupError):
        jobs = []
    if done.returncode or len(jobs) != repeat or any(job["error"] for job in jobs):
        said = (done.stderr + done.stdout[: max(start, 0)]).strip().splitlines()
        raise Impossible(said[-1] if said else f"fio ends with status {done.returncode}")
    return jobs


class Bench:
    def __init__(self, options):
        self.options = options
        self.clock = Clock()
        self.rows = [
            row for row in rows.profile(options.profile)
            if any(fnmatch.fnmatch(row.name, glob) for glob in options.rows.split(","))
        ]  # fmt: skip

    def calibrate(self):
        """What it costs to ask for the time, which is no part of any operation."""
        costs = []
        for _ in range(7):
            fio("/tmp/bench-start", ["--rw=write", "--bs=4096", "--size=4096", *self.clock.arguments()])
            costs.append(self.clock.taken(["job0"]))
        self.clock.cost = sorted(costs)[3]

    def touch_memory(self):
        """The host gives memory when it is first used, which would make the first contender slow."""
        with open(self.options.device, "rb") as file:
            size = file.seek(0, os.SEEK_END)
        run("dd", "if=/dev/zero", f"of={self.options.device}", "bs=1M", f"count={size >> 20}", "conv=fsync")
        drop_caches(1)
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        # tmpfs takes up to half of the memory.
        run("dd", "if=/dev/zero", "of=/tmp/bench-memory", "bs=1M", f"count={free * 2 // 5 >> 10}")
        os.unlink("/tmp/bench-memory")

    def lay_out(self, mounted):
        """The files that rows work on, by the kernel's ext4, so that they are the same for all."""
        directory = mounted.mount_by_kernel()
        self.write_file(directory / "data", rows.FILE_SIZE)
        if any(row.on == "scattered" for row in self.rows):
            self.scatter(directory)
        mounted.unmount()

    def write_file(self, path, size):
        size //= self.options.shrink
        fio(path, ["--rw=write", "--bs=256k", f"--size={size}", "--end_fsync=1"])

    def scatter(self, directory):
        """A file each block of which stands alone, because nothing else is free on the volume."""
        size = rows.SCATTERED_SIZE // self.options.shrink
        # What ext4 keeps for emergencies would be left in one piece.
        disk = pathlib.Path(self.options.device).name
        pathlib.Path(f"/sys/fs/ext4/{disk}/reserved_clusters").write_text("0\n")
        spare, holes = directory / "spare", directory / "holes"
        # Its blocks, and those that say where they are.
        holey = 2 * (size + size // 16)
        # A block says of some 300 where they are.
        fill(spare, (holey // 4096 // 256 + 8) * 4096)
        fill(holes, holey)
        fill(directory / "filler", None)
        spare.unlink()
        # With a journal, what was freed can be used when that is committed.
        os.sync()
        with open(holes, "r+b") as file:
            for offset in range(0, holey, 8192):
                fallocate(file.fileno(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, 4096)
        os.sync()
        fio(directory / "scattered", ["--rw=write", "--bs=256k", f"--size={size}", "--end_fsync=1"])
        for name in ("holes", "filler"):
            (directory / name).unlink()
        extents = int(run("filefrag", directory / "scattered").split(":")[-1].split()[0])
        if extents < size // 4096 * 9 // 10:
            raise Impossible(f"only {extents} extents where there should be {size // 4096}")

    def measure(self, mounted, row):
        """One row for one contender, mounted; returns the record."""
        shrink = self.options.shrink
        path = MOUNT / row.on
        arguments = row.fio(shrink)
        if row.on == "scattered" and not path.exists():
            raise Impossible("where its blocks are cannot be arranged from outside")
        if row.on in ("new", "unwritten"):
            path.unlink(missing_ok=True)
        if row.on == "unwritten":
            fill(path, row.file_size // shrink)
        if row.mappings == "cold":
            mounted.unmount()
            drop_caches(3)
            mounted.mount()
        elif row.on == "data":
            touch(path, row)
        drop_caches(1)
        before = mounted.upcalls()
        arguments += self.clock.arguments("echo 1 >/proc/sys/vm/drop_caches")
        repeat = max(row.repeat, self.options.repeat if row.on == "data" else 1)
        jobs = fio(path, arguments, repeat)
        cpu = self.clock.taken([job["jobname"] for job in jobs], row.jobs)
        after = mounted.upcalls()
        done = [job["write" if row.writes else "read"] for job in jobs]
        if row.on in ("new", "unwritten"):
            path.unlink()
        return {
            "bytes": sum(job["io_bytes"] for job in done), "ops": sum(job["total_ios"] for job in done),
            "ns": sum(job["runtime"] for job in done) * 10**6, "cpu_ns": max(cpu, 0),
            "upcalls": {
                name: after[name] - before.get(name, 0) for name in contenders.UPCALLS if name in after
            },
        }  # fmt: skip

    def contest(self, contender, number):
        """All rows for one contender, on a volume of its own."""
        mounted = contenders.Mounted(contender, self.options.device)
        who = {"contender": contender.name, "round": number}
        try:
            mounted.make()
            if contender.volume != "lab":
                self.lay_out(mounted)
            mounted.mount()
            if contender.volume == "lab":
                self.write_file(MOUNT / "data", rows.FILE_SIZE)
        except (Impossible, OSError, subprocess.TimeoutExpired) as error:
            mounted.abandon()
            for row in self.rows:
                say(**who, row=row.name, impossible=str(error))
            return
        for row in self.rows:
            try:
                say(**who, row=row.name, **self.measure(mounted, row))
            except (Impossible, OSError, subprocess.TimeoutExpired) as error:
                say(**who, row=row.name, impossible=str(error))
        try:
            mounted.unmount()
            trouble = mounted.check()
        except (Impossible, OSError, subprocess.TimeoutExpired) as error:
            mounted.abandon()
            trouble = str(error)
        say(**who, check=trouble or "ok")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device")
    parser.add_argument("--profile", default="quick", choices=["quick", "full"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="*", help="names, with * and ?")
    parser.add_argument("--contenders", default="", help="default: those of the profile")
    parser.add_argument("--repeat", type=int, default=1, help="do rows on existing files as often in a row")
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes by this")
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help="begin no round but the first that would take longer altogether")  # fmt: skip
    options = parser.parse_args()
    names = [name for name in options.contenders.split(",") if name]
    if not names:
        everybody = [contender.name for contender in contenders.CONTENDERS]
        names = contenders.QUICK if options.profile == "quick" else everybody
    wanted = [contender for contender in contenders.CONTENDERS if contender.name in names]
    if len(wanted) != len(set(names)):
        parser.error(f"--contenders: there are {', '.join(c.name for c in contenders.CONTENDERS)}")
    bench = Bench(options)
    # Where fio leaves what its commands print.
    os.chdir("/tmp")
    bench.touch_memory()
    bench.calibrate()
    say(kernel=os.uname().release, clock_cost_ns=bench.clock.cost, cpus=os.cpu_count(),
        fio=run("fio", "--version").strip(), device=options.device)  # fmt: skip
    begun, longest = time.monotonic(), 0
    for number in range(options.rounds):
        start = time.monotonic()
        if number and start - begun + longest > options.seconds:
            break
        # Who comes first may have it easier, so that changes, too.
        turn = number % len(wanted)
        for contender in wanted[turn:] + wanted[:turn]:
            bench.contest(contender, number)
        longest = max(longest, time.monotonic() - start)


if __name__ == "__main__":
    main()
