#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run the benchmark: one boot for each device, then tables and a picture.

    tests/bench/run.py [--profile quick|full] [--vm um|qemu|kvm] [--device ram|disk]...
                       [--rounds N] [--rows GLOB,...] [--contenders NAME,...] [--minutes N]
                       [--out DIRECTORY]

tests/bench/README.md explains. What the guest printed is kept in $CACHE/bench.
"""

import argparse
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "vm"))

import report  # noqa: E402
import run as vm  # noqa: E402

MACHINES = {
    "um": ("um-bench", "User Mode Linux, one processor: memory is copied at the speed of the machine, "
           "system calls and context switches are dear"),
    "qemu": ("x86", "QEMU without hardware virtualisation (TCG), one processor; the guest's clock counts "
             "instructions (-icount shift=0), so times are instructions in ns, but for waiting for a disk"),
    "kvm": ("x86", "QEMU with KVM, one processor"),
}  # fmt: skip
DEVICES = {
    "ram": "RAM disk in the guest (brd, 1 GiB)",
    "disk": {
        "um": "disk that is a file on the host (ubd, 1 GiB)",
        "qemu": "virtio-blk, a file on the host (1 GiB)",
        "kvm": "virtio-blk, a file on the host (1 GiB)",
    },
}


def processor():
    """What the machine calls its processors."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} x {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} x {platform.machine()}"


def commit():
    done = subprocess.run(
        ["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def boot(options, device):
    """One boot; returns what the guest said and what went wrong."""
    kernel = MACHINES[options.vm][0]
    words = ["tests/bench/guest.py", "/dev/ram0" if device == "ram" else '"$FI_DISK_BENCH"',
             "--profile", options.profile, "--rounds", str(options.rounds), "--rows", f"'{options.rows}'"]  # fmt: skip
    if options.vm == "qemu":
        # Each time takes as many instructions, so rounds matter little, and fio's milliseconds much.
        words += ["--repeat", "4"]
    if options.contenders:
        words += ["--contenders", options.contenders]
    if options.minutes:
        words += ["--seconds", str(options.minutes * 60)]
    if options.vm == "kvm" and not vm.kvm_works(vm.kernel_paths(kernel)[0]):
        sys.exit("error: KVM does not work here")
    # The guest has one processor, and so has what serves it, when nothing moves about.
    everywhere = os.sched_getaffinity(0)
    if options.vm == "um":
        os.sched_setaffinity(0, {max(everywhere)})
    try:
        result = vm.boot(
            kernel, " ".join(words), name=f"bench-{device}", timeout=options.timeout, memory="3G", cpus=1,
            disks=[] if device == "ram" else ["bench=1G"], plain=True, icount=options.vm == "qemu",
            append="brd.rd_nr=1 brd.rd_size=1048576" if device == "ram" else "",
            env={"FI_BIN": options.bin} if options.bin else None, image=options.image, echo=options.verbose,
            # Without a disk, emulation has no time that others could take; and while the guest waits, it
            # spins, and would keep the machine from what is waited for.
            urgent=options.vm != "qemu" or device != "ram",
        )  # fmt: skip
    finally:
        os.sched_setaffinity(0, everywhere)
    trouble = result.trouble + [f"kernel log: {line}" for line in result.splats]
    if result.status not in (0, None):
        errors = (result.directory / "out/stderr.txt").read_text(errors="replace")
        trouble.append(errors.strip()[-2000:])
    return result, trouble


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="full", choices=["quick", "full"])
    parser.add_argument("--vm", default="um", choices=MACHINES)
    parser.add_argument("--device", action="append", choices=["ram", "disk"], help="default: both; quick: ram")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="*", help="names of rows, with * and ?")
    parser.add_argument("--contenders", help="default: those of the profile")
    parser.add_argument("--minutes", type=float, help="as many whole rounds as fit, for each device; at least one")
    parser.add_argument("--out", type=pathlib.Path, help="where the tables go; default $CACHE/bench")
    parser.add_argument("--bin", help="directory of the servers")
    parser.add_argument("--image", type=pathlib.Path, help="boot this kernel")
    parser.add_argument("--timeout", type=float, default=6 * 3600)
    parser.add_argument("--verbose", action="store_true", help="show each figure as it comes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kept = vm.CACHE / "bench"
    kept.mkdir(parents=True, exist_ok=True)
    failed = False
    made_of = commit()
    for device in options.device or (["ram"] if options.profile == "quick" else ["ram", "disk"]):
        name = f"{options.vm}-{device}" + ("-quick" if options.profile == "quick" else "")
        result, trouble = boot(options, device)
        (kept / f"{name}.txt").write_text(result.output)
        kind = DEVICES[device]
        notes = [
            f"device: {kind if isinstance(kind, str) else kind[options.vm]}",
            f"guest: {MACHINES[options.vm][1]}",
            f"machine: {processor()}",
            f"made by `tests/bench/run.py --profile {options.profile} --vm {options.vm} --device {device} "
            f"--rounds {options.rounds}` of {made_of}, {time.strftime('%Y-%m-%d')}, "
            f"in {result.seconds / 60:.0f} minutes",
        ]
        print(report.write(result.output, (options.out or kept) / name, notes))
        for line in trouble:
            print(f"error: {line}")
        failed |= bool(trouble)
    sys.exit(failed)


if __name__ == "__main__":
    main()
