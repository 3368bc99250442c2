# SPDX-License-Identifier: GPL-2.0
"""The rows of the benchmark: what fio does, on what, and how it is prepared.

Read on the host, which makes tables of it, and in the guest, which does it.
"""

import dataclasses

KIB = 1 << 10
MIB = 1 << 20

# All rows but those on files of their own use this one, written before and
# made of as few extents as its filesystem likes.
FILE_SIZE = 256 * MIB
# A file of single blocks, none of which has a neighbour.
SCATTERED_SIZE = 32 * MIB

# What was published of another implementation of the protocol, as ratios to the
# same reference: with a warm mapping cache, and with none.
DRAFT = {
    "seq-read-buffered": (1.09, 0.76),
    "seq-read-direct": (0.94, 0.84),
    "seq-write-buffered": (1.11, 1.08),
    "seq-write-direct": (1.03, 1.01),
    "rand-read-buffered": (0.99, 0.62),
    "rand-read-direct": (0.92, 0.79),
    "rand-write-buffered": (0.58, 0.26),
    "rand-write-direct": (0.44, 0.21),
    "unwritten-direct": (0.34, 0.26),
    "append-fsync": (0.10, 0.06),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One workload.

    `on` says which file: "data", written before; "unwritten", preallocated;
    "new", which does not exist; "scattered". The page cache has nothing of it in
    any case. `mappings` says what the kernel knows of where it is: "warm", since
    the same was done shortly before, or "cold", since it has just been mounted.
    """

    name: str
    title: str
    rw: str
    bs: int
    io_size: int
    direct: bool = False
    on: str = "data"
    depth: int = 1
    jobs: int = 1
    engine: str = "psync"
    fsync: bool = False
    mappings: str = "warm"

    @property
    def writes(self):
        return "write" in self.rw

    @property
    def repeat(self):
        """How often it is done in a row: fio counts milliseconds, and some take only 30."""
        return 4 if self.bs == MIB and self.on == "data" else 1

    @property
    def file_size(self):
        if self.on == "scattered":
            return SCATTERED_SIZE
        if self.on == "new":
            return self.io_size
        return FILE_SIZE

    def fio(self, shrink=1):
        """fio's arguments, without names; the sizes are divided by `shrink`."""
        # Jobs that go through the file each have a part of their own.
        parts = self.jobs if self.rw in ("read", "write") else 1
        size = self.file_size // shrink // parts
        arguments = [
            f"--rw={self.rw}", f"--bs={self.bs}", f"--ioengine={self.engine}",
            f"--iodepth={self.depth}", f"--numjobs={self.jobs}", f"--direct={int(self.direct)}",
            f"--size={size}", f"--offset_increment={size if parts > 1 else 0}",
            # Divided among the jobs, so that a row is the same amount of work.
            f"--io_size={max(self.io_size // shrink // self.jobs, self.bs)}",
        ]  # fmt: skip
        if self.fsync:
            arguments.append("--fsync=1")
        elif self.writes:
            # What is still in the page cache has not been written.
            arguments.append("--end_fsync=1")
        return arguments


def table_of_the_draft():
    """The rows of DRAFT."""
    sequential = {"bs": MIB, "io_size": FILE_SIZE}
    buffered = {"bs": 4 * KIB, "io_size": 128 * MIB}
    direct = {"bs": 4 * KIB, "io_size": 48 * MIB, "direct": True}
    return [
        Row("seq-read-buffered", "sequential read 1 MiB, buffered", "read", **sequential),
        Row("seq-read-direct", "sequential read 1 MiB, direct", "read", direct=True, **sequential),
        Row("seq-write-buffered", "sequential write 1 MiB, buffered", "write", **sequential),
        Row("seq-write-direct", "sequential write 1 MiB, direct", "write", direct=True, **sequential),
        Row("rand-read-buffered", "random read 4 KiB, buffered", "randread", **buffered),
        Row("rand-read-direct", "random read 4 KiB, direct", "randread", **direct),
        Row("rand-write-buffered", "random overwrite 4 KiB, buffered", "randwrite", **buffered),
        Row("rand-write-direct", "random overwrite 4 KiB, direct", "randwrite", **direct),
        Row("unwritten-direct", "random write 4 KiB into unwritten, direct", "randwrite",
            on="unwritten", **direct),
        Row("append-fsync", "append 4 KiB + fsync", "write", 4 * KIB, 8 * MIB, on="new", fsync=True),
    ]  # fmt: skip


def deep():
    """Rows that are wanted every day beside those."""
    direct = {"bs": 4 * KIB, "io_size": 48 * MIB, "direct": True, "depth": 32, "engine": "libaio"}
    return [
        Row("unwritten-direct-d32", "random write 4 KiB into unwritten, direct, depth 32",
            "randwrite", on="unwritten", **direct),
    ]  # fmt: skip


def product():
    """Sequential and random, read and overwrite, buffered and direct, and so on."""
    rows = []
    for pattern in ("seq", "rand"):
        for verb in ("read", "write"):
            for bs in (4 * KIB, MIB):
                for direct in (False, True):
                    for depth in (1, 32):
                        for jobs in (1, 2):
                            # Many large requests at once are no other work than one
                            # after the other, where the disk is memory.
                            if bs == MIB and jobs == 2:
                                continue
                            # The page cache is filled at once, whatever the depth.
                            if not direct and depth == 32 and (bs == MIB or jobs == 2):
                                continue
                            rows.append(product_row(pattern, verb, bs, direct, depth, jobs))
    return rows


def product_row(pattern, verb, bs, direct, depth, jobs):
    size, how = ("4k", "4 KiB") if bs < MIB else ("1m", "1 MiB")
    name, title = f"{pattern}-{verb}-{size}", {"seq": "sequential", "rand": "random"}[pattern]
    name += "-direct" if direct else "-buffered"
    title += f" {'overwrite' if verb == 'write' else verb} {how}, {'direct' if direct else 'buffered'}"
    if depth > 1:
        name += f"-d{depth}"
        title += f", depth {depth}"
    if jobs > 1:
        name += f"-j{jobs}"
        title += f", {jobs} jobs"
    if bs == MIB or pattern == "seq":
        io_size = FILE_SIZE
    else:
        io_size = (48 if direct else 128) * MIB
    return Row(
        name, title, verb if pattern == "seq" else f"rand{verb}", bs, io_size, direct,
        depth=depth, jobs=jobs,
        engine="psync" if depth == 1 else "libaio" if direct else "io_uring",
    )  # fmt: skip


def others():
    """What does not fit into the product."""
    small = {"bs": 4 * KIB}
    cold = {"on": "scattered", "mappings": "cold", "bs": 4 * KIB, "io_size": SCATTERED_SIZE}
    deep = {"depth": 32, "engine": "libaio", "direct": True}
    mapped = {"engine": "mmap", "bs": 4 * KIB, "io_size": 128 * MIB}
    return [
        Row("unwritten-buffered", "random write 4 KiB into unwritten, buffered", "randwrite",
            io_size=128 * MIB, on="unwritten", **small),
        Row("unwritten-seq-direct", "sequential write 1 MiB into unwritten, direct", "write",
            bs=MIB, io_size=FILE_SIZE, direct=True, on="unwritten"),
        Row("unwritten-direct-d32-j2", "random write 4 KiB into unwritten, direct, depth 32, 2 jobs",
            "randwrite", io_size=48 * MIB, on="unwritten", jobs=2, **small, **deep),
        Row("new-buffered", "sequential write 1 MiB of a new file, buffered", "write",
            bs=MIB, io_size=FILE_SIZE, on="new"),
        Row("new-direct", "sequential write 1 MiB of a new file, direct", "write",
            bs=MIB, io_size=FILE_SIZE, direct=True, on="new"),
        Row("append-buffered", "append 4 KiB, buffered", "write", io_size=128 * MIB, on="new", **small),
        Row("append-direct", "append 4 KiB, direct", "write", io_size=32 * MIB, on="new",
            direct=True, **small),
        Row("mmap-seq-read", "sequential read 4 KiB, mapped", "read", **mapped),
        Row("mmap-rand-read", "random read 4 KiB, mapped", "randread", **mapped),
        Row("mmap-rand-write", "random overwrite 4 KiB, mapped", "randwrite", **mapped),
        Row("cold-seq-read", "sequential read 4 KiB of 8192 extents, buffered, cold", "read", **cold),
        Row("cold-rand-read", "random read 4 KiB of 8192 extents, buffered, cold", "randread", **cold),
        Row("cold-rand-read-direct", "random read 4 KiB of 8192 extents, direct, cold", "randread",
            direct=True, **cold),
        Row("cold-rand-write", "random overwrite 4 KiB of 8192 extents, buffered, cold", "randwrite",
            **cold),
        Row("cold-rand-write-direct", "random overwrite 4 KiB of 8192 extents, direct, cold",
            "randwrite", direct=True, **cold),
    ]  # fmt: skip


def profile(name):
    """The rows of a size of the benchmark; no work comes twice."""
    quick = table_of_the_draft() + deep()
    if name == "quick":
        return quick
    rows, seen = [], set()
    for row in quick + product() + others():
        work = dataclasses.astuple(dataclasses.replace(row, name="", title=""))
        if work not in seen:
            seen.add(work)
            rows.append(row)
    return rows
