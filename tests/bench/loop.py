#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Does one thing again and again, for tests/bench/steps.py to look at. In the guest.

    loop.py DEVICE CONTENDER,... WORK,...
"""

import mmap
import os
import pathlib
import random
import sys
import time

sys.dont_write_bytecode = True

import contenders  # noqa: E402
from contenders import MOUNT  # noqa: E402

OUT = pathlib.Path(os.environ["FI_OUT"])
SIZE, BLOCK = 128 << 20, 4096


def work(path, name):
    """Until it is killed; its first round makes mappings known."""
    pattern, verb, how = name.split("-")
    writes, direct = verb == "write", how == "direct"
    block = mmap.mmap(-1, BLOCK)
    block.write(b"\1" * BLOCK)
    file = os.open(path, (os.O_RDWR if writes else os.O_RDONLY) | (os.O_DIRECT if direct else 0))
    do = os.pwritev if writes else os.preadv
    offsets = list(range(0, SIZE, BLOCK))
    for offset in offsets[::256]:
        do(file, [block], offset)
    if pattern == "rand":
        random.Random(1).shuffle(offsets)
    while True:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM if pattern == "rand" else os.POSIX_FADV_NORMAL)
        for offset in offsets:
            do(file, [block], offset)


def main():
    device, names, works = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
    for name in names:
        mounted = contenders.Mounted(next(c for c in contenders.CONTENDERS if c.name == name), device)
        mounted.make()
        (mounted.mount_by_kernel() / "data").write_bytes(bytes(SIZE))
        mounted.unmount()
        mounted.mount()
        for what in works:
            child = os.fork()
            if not child:
                work(MOUNT / "data", what)
            time.sleep(0.5)
            (OUT / "now").write_text(f"{name} {what}")
            while not (OUT / f"seen {name} {what}").exists():
                time.sleep(0.05)
            os.kill(child, 9)
            os.waitpid(child, 0)
        mounted.unmount()


if __name__ == "__main__":
    main()
