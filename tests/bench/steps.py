#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Count the instructions that User Mode Linux takes for a read or write of 4 KiB, function by function.

    tests/bench/steps.py [--image FILE] [--steps N] [--contenders NAME,...] [--work WORK,...] [--functions N]

The kernel is a process of this machine, so it can be stepped through, one instruction after the other, while it
does the same thing again and again. What else runs here does not count. WORK is seq or rand, read or write,
buffered or direct, as in rand-read-direct. What is counted is vfs_readv or vfs_writev, with all that it calls.
"""

import argparse
import bisect
import collections
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "vm"))

import run as vm  # noqa: E402

PEEKUSER, SINGLESTEP, DETACH, SEIZE, INTERRUPT = 3, 9, 17, 0x4206, 0x4207
# Where struct user has the registers.
RIP, RSP = 16 * 8, 19 * 8
WALL = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, pid, data=0, addr=0):
    ctypes.set_errno(0)
    result = libc.ptrace(request, pid, addr, data)
    if ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")
    return result


class Functions:
    """The functions of an image, by address."""

    def __init__(self, image):
        self.addresses, self.names = [], []
        listed = subprocess.run(["nm", "-n", "-C", image], capture_output=True, text=True, check=True).stdout
        for address, kind, name in (line.split(None, 2) for line in listed.splitlines() if line[0] != " "):
            if kind in "tTwW":
                self.addresses.append(int(address, 16))
                self.names.append(name)
        if not self.names:
            sys.exit(f"error: {image} has no symbols")

    def at(self, address):
        """The name, and whether this is where it begins."""
        index = bisect.bisect_right(self.addresses, address) - 1
        return self.names[index], self.addresses[index] == address


def steps(pid, count):
    """Instruction and stack pointers of the next `count` steps of a process."""
    seen, held = [], 0
    ptrace(SEIZE, pid)
    ptrace(INTERRUPT, pid)
    os.waitpid(pid, WALL)
    given = 0
    while len(seen) < count:
        ptrace(SINGLESTEP, pid, given)
        _, status = os.waitpid(pid, WALL)
        given = os.WSTOPSIG(status)
        if given == signal.SIGTRAP:
            given = 0
            seen.append((ptrace(PEEKUSER, pid, 0, RIP), ptrace(PEEKUSER, pid, 0, RSP)))
        elif given == signal.SIGALRM:
            # At this speed there would be a tick in every operation.
            given, held = 0, given
    ptrace(DETACH, pid, held)
    return seen


class Count:
    """Instructions for one call of a function, by what it calls."""

    def __init__(self, functions, seen, of):
        self.alone, self.all, self.calls = collections.Counter(), collections.Counter(), collections.Counter()
        known = {}
        stack = []
        starts = [i for i, (ip, _) in enumerate(seen) if functions.at(ip) == (of, True)]
        self.number = max(len(starts) - 1, 0)
        for i in range(*(starts[:: len(starts) - 1] if self.number else (0, 0))):
            ip, sp = seen[i]
            if ip not in known:
                known[ip] = functions.at(ip)
            name, begins = known[ip]
            # What has returned has given its place on the stack back.
            while stack and sp > stack[-1][1]:
                done, _, start = stack.pop()
                if all(done != other for other, _, _ in stack):
                    self.all[done] += i - start
            self.alone[name] += 1
            if begins:
                self.calls[name] += 1
                stack.append((name, sp, i))
        self.total = self.all[of]


def look(image, options, guest):
    """Steps through all contenders and works, in a guest that is being started."""
    directory = vm.CACHE / "vm/steps"
    result = {}
    for name in options.contenders:
        for work in options.work:
            now = directory / "out/now"
            while not (now.exists() and now.read_text() == f"{name} {work}"):
                if os.waitpid(guest, os.WNOHANG)[0]:
                    sys.exit("error: the guest has ended")
                time.sleep(0.05)
            pid = int((directory / "uml/guest/pid").read_text())
            of = "vfs_writev" if "write" in work else "vfs_readv"
            result[work, name] = Count(image, steps(pid, options.steps), of)
            (directory / f"out/seen {name} {work}").touch()
    os.waitpid(guest, 0)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=pathlib.Path, help="boot this kernel, which has symbols")
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=["ext4-nojournal", "iomap"])
    parser.add_argument("--work", type=lambda text: text.split(","), default=[
        f"{pattern}-{verb}-{how}" for pattern, how in (("rand", "buffered"), ("rand", "direct"), ("seq", "buffered"))
        for verb in ("read", "write")
    ])  # fmt: skip
    parser.add_argument("--functions", type=int, default=0, help="list so many of those that take most")
    options = parser.parse_args()
    options.image = options.image or vm.kernel_paths("um-bench")[0]
    image = Functions(options.image)
    # What an earlier run has left.
    (vm.CACHE / "vm/steps/out/now").unlink(missing_ok=True)
    command = f"python3 tests/bench/loop.py /dev/ram0 {','.join(options.contenders)} {','.join(options.work)}"
    # Whoever waits for the guest to end would take its stops away from the one who steps.
    guest = os.fork()
    if not guest:
        boot = vm.boot(
            "um-bench", command, name="steps", plain=True, image=options.image, cpus=1, memory="2G", timeout=3600,
            append="brd.rd_nr=1 brd.rd_size=393216",
        )  # fmt: skip
        os._exit(bool(boot.trouble))
    result = look(image, options, guest)
    print("| | " + " | ".join(options.contenders) + " |\n|---|" + "--:|" * len(options.contenders))
    for work in options.work:
        counts = [result.get((work, name)) for name in options.contenders]
        cells = [f"{count.total / count.number:.0f}" if count and count.number else "–" for count in counts]
        print(f"| {work} | " + " | ".join(cells) + " |")
    for (work, name), count in result.items() if options.functions else ():
        if not count.number:
            continue
        print(f"\n{work}, {name}, {count.number} operations: with callees, alone, calls")
        for function, total in count.all.most_common(options.functions):
            n = count.number
            print(f"{total / n:8.0f} {count.alone[function] / n:8.0f} {count.calls[function] / n:6.2f}  {function}")


if __name__ == "__main__":
    main()
