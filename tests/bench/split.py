#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What a row's time is spent on: waiting for each kind of request, and all the rest. In the guest.

    split.py DEVICE [--row NAME] [--contenders NAME,...]

It takes a kernel with tracepoints, which the emulated PC has: tests/bench/README.md says how. With
the tracepoints on, all takes a little longer than in the benchmark.
"""

import argparse
import os
import pathlib
import re
import sys

sys.dont_write_bytecode = True

import contenders  # noqa: E402
import rows  # noqa: E402
from contenders import MOUNT, Impossible  # noqa: E402
from guest import drop_caches, fill, fio  # noqa: E402

TRACING = pathlib.Path("/sys/kernel/tracing")
SENT = re.compile(r" (\d+\.\d+): fuse_request_send: connection (\d+) req (\d+) opcode \d+ \((?:FUSE_)?(\w+)\)")
ENDED = re.compile(r" (\d+\.\d+): fuse_request_end: connection (\d+) req (\d+) ")


def trace(on):
    (TRACING / "events/fuse/fuse_request_send/enable").write_text("1" if on else "0")
    (TRACING / "events/fuse/fuse_request_end/enable").write_text("1" if on else "0")


def waits(text):
    """{kind of request: (how many, seconds from sending to the reply)}."""
    sent, sums = {}, {}
    for line in text.splitlines():
        if match := SENT.search(line):
            sent[match[2], match[3]] = float(match[1]), match[4]
        elif (match := ENDED.search(line)) and (match[2], match[3]) in sent:
            start, kind = sent.pop((match[2], match[3]))
            count, seconds = sums.get(kind, (0, 0))
            sums[kind] = count + 1, seconds + float(match[1]) - start
    return sums


def split(contender, row, device):
    """One row for one contender: microseconds for one operation, and what they are."""
    mounted = contenders.Mounted(contender, device)
    try:
        mounted.make()
        mounted.mount()
        path = MOUNT / row.on
        if row.on == "unwritten":
            fill(path, row.file_size)
        elif row.on == "data":
            fio(path, ["--rw=write", "--bs=1M", f"--size={row.file_size}", "--end_fsync=1"])
        drop_caches(1)
        (TRACING / "trace").write_text("")
        trace(True)
        done = fio(path, row.fio())[0]["write" if row.writes else "read"]
        trace(False)
        text = (TRACING / "trace").read_text()
        mounted.unmount()
    except (Impossible, OSError) as error:
        trace(False)
        mounted.abandon()
        print(f"{contender.name}: not possible: {error}")
        return
    ops = done["total_ios"]
    total = done["runtime"] * 1000 / ops
    print(f"{contender.name}: {total:.1f} us for one operation")
    for kind, (count, seconds) in sorted(waits(text).items(), key=lambda item: -item[1][1]):
        took = seconds * 1e6 / ops
        if took >= 0.05:
            print(f"    {took:8.1f}  waiting for {count / ops:.2f} {kind}")
            total -= took
    print(f"    {total:8.1f}  all the rest")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device")
    parser.add_argument("--row", default="append-fsync")
    parser.add_argument("--contenders", default="ext4-nojournal,ext4,iomap,iomap-journal,lab-unwritten")
    options = parser.parse_args()
    os.chdir("/tmp")
    if not (TRACING / "events/fuse/fuse_request_send").exists():
        sys.exit("error: this kernel has no tracepoints in FUSE")
    (TRACING / "trace_clock").write_text("mono")
    (TRACING / "buffer_size_kb").write_text("32768")
    row = next((row for row in rows.profile("full") if row.name == options.row), None)
    if row is None:
        sys.exit(f"error: there is no row '{options.row}'")
    print(row.title)
    for contender in contenders.CONTENDERS:
        if contender.name in options.contenders.split(","):
            split(contender, row, options.device)


if __name__ == "__main__":
    main()
