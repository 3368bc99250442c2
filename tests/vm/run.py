#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Boot one of our kernels on the host's root and run one command in it.

    tests/vm/run.py --kernel x86 --disk data=/path/image -- COMMAND...

See tests/vm/README.md for what the command finds in the guest. With --plain
the command may print what it likes and its exit status counts; without, it
must print one line per case ("ok - NAME", "not ok - NAME: REASON") and
"# done" at the end.

The module is also imported by scripts/test: boot() returns a Result.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import uml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(
    os.environ.get("FUSE_IOMAP_CACHE")
    or pathlib.Path(
        os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    )
    / "fuse-iomap"
)

# What the kernel prints when it has found a fault in itself.
SPLAT = re.compile(
    r"\bBUG:|\bBUG at |WARNING:|KASAN:|UBSAN:|KFENCE:|Oops:|Kernel panic"
    r"|general protection fault|unable to handle|invalid opcode"
    r"|INFO: task .* blocked|INFO: rcu|rcu: INFO:|self-detected stall"
    r"|soft lockup|hard LOCKUP|sleeping function called"
    r"|possible (recursive|circular) locking|possible irq lock inversion"
    r"|inconsistent lock state|suspicious RCU usage|held lock freed"
    r"|lock held when returning|INFO: trying to register"
    r"|DEBUG_LOCKS_WARN_ON|bad unlock balance|BUG_ON|refcount_t:"
    r"|(list_add|list_del) corruption|scheduling while atomic"
    r"|rust_kernel: panicked|panicked at"
)

# User Mode Linux' flush_tlb_mm() walks the VMAs of a process and takes for granted that mmap_lock is
# held. Whoever unmaps pages of a file (truncate) does not hold it, and gets there if two of its
# threads happen to do that at a time (mm_tlb_flush_nested()), with every filesystem. On a PC the
# function walks nothing.
KNOWN = "suspicious RCU usage"
KNOWN_PARTS = ("lib/maple_tree.c:", "? flush_tlb_mm+0x", "? tlb_finish_mmu+0x", "? um_set_signals+0x")

# Kernels that are processes of the host, and what builds them.
UML = {"um": "scripts/kunit", "um-bench": "scripts/build-kernel um-bench"}

OK = re.compile(r"^ok(?: \d+)?(?: -)? (.+)$")
NOT_OK = re.compile(r"^not ok(?: \d+)?(?: -)? (.+?)(?:: (.*))?$")


@dataclasses.dataclass
class Case:
    """One tested thing: its name, and why it failed if it did."""

    name: str
    ok: bool
    reason: str = ""


@dataclasses.dataclass
class Result:
    """What came of one boot."""

    cases: list
    status: int | None
    trouble: list
    splats: list
    output: str
    directory: pathlib.Path
    seconds: float

    def good(self):
        return not self.trouble and not self.splats


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def kernel_paths(kernel):
    """The image of a kernel, and fuse.ko if FUSE is a module there."""
    build = CACHE / "build" / kernel
    if kernel in UML:
        image = build / "linux"
        if not image.exists():
            sys.exit(f"error: {image} is missing; run {UML[kernel]}")
        return image, None
    image = build / "arch/x86/boot/bzImage"
    if not image.exists():
        sys.exit(f"error: {image} is missing; run scripts/build-kernel {kernel}")
    config = (build / ".config").read_text()
    modular = "\nCONFIG_FUSE_FS=m\n" in config
    return image, build / "fs/fuse/fuse.ko" if modular else None


def kvm_works(image):
    """Does an ordinary guest really run under KVM here?

    The device file proves nothing (under some hypervisors it opens and the
    guest then never gets anywhere), so a short boot is tried, once per boot of
    the host. With no root device the kernel panics, which ends QEMU.
    """
    forced = os.environ.get("FUSE_IOMAP_KVM")
    if forced in ("0", "1"):
        return forced == "1"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    stamp = CACHE / "stamps/kvm"
    boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if stamp.exists():
        words = stamp.read_text().split()
        if len(words) == 2 and words[0] == boot_id:
            return words[1] == "yes"
    log = CACHE / "logs/kvm-probe.log"
    command = [
        "qemu-system-x86_64", "-machine", "q35,accel=kvm", "-cpu", "host",
        "-m", "512M", "-nodefaults", "-display", "none", "-no-reboot",
        "-serial", f"file:{log}", "-kernel", str(image),
        "-append", "console=ttyS0 panic=-1 root=/dev/none rootwait=1",
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    try:
        subprocess.run(
            command, timeout=20, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pass
    works = "Kernel panic" in log.read_text(errors="replace")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(f"{boot_id} {'yes' if works else 'no'}\n")
    return works


def announce_acceleration(kernel):
    """Say whether guests are emulated, which decides how long everything takes."""
    if kernel in UML:
        say("User Mode Linux: the guest is a process of this machine")
    elif kvm_works(kernel_paths(kernel)[0]):
        say("KVM works here, and is used")
    elif os.environ.get("FUSE_IOMAP_KVM") == "0":
        say("KVM is switched off by FUSE_IOMAP_KVM=0: the guest is emulated")
    elif os.path.exists("/dev/kvm"):
        say("/dev/kvm exists, but a test guest did not boot with it: the guest is emulated")
    else:
        say("there is no KVM here: the guest is emulated, which takes 10 to 20 times as long")


def parse_size(text):
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * unit[text[-1]]


@dataclasses.dataclass
class Disk:
    """A disk of the guest: its name there, the file it is, and its options."""

    name: str
    path: str
    read_only: bool = False
    snapshot: bool = False
    block_size: int | None = None


def parse_disks(disks, directory):
    """The disks that the texts describe; scratch disks are made.

    A disk is "NAME=PATH[,ro][,snap][,bs=N]" or "NAME=SIZE[,bs=N]" (an empty
    scratch disk of for example 512M). With snap the guest's writes are thrown
    away; bs is the logical block size.
    """
    parsed = []
    for text in disks:
        name, _, rest = text.partition("=")
        path, *options = rest.split(",")
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,19}", name):
            sys.exit(f"error: disk name '{name}': small letters and digits, at most 20")
        if re.fullmatch(r"\d+[KMG]", path):
            scratch = directory / f"disk-{name}"
            with open(scratch, "wb") as file:
                file.truncate(parse_size(path))
            path = str(scratch)
        if not os.path.exists(path):
            sys.exit(f"error: disk {name}: {path} does not exist")
        disk = Disk(name, path)
        for option in options:
            if option == "ro":
                disk.read_only = True
            elif option == "snap":
                disk.snapshot = True
            elif re.fullmatch(r"bs=\d+", option):
                disk.block_size = int(option[3:])
            else:
                sys.exit(f"error: disk {name}: unknown option '{option}'")
        parsed.append(disk)
    return parsed


def disk_arguments(disks):
    """QEMU's arguments for the disks."""
    arguments = []
    for number, disk in enumerate(disks):
        drive = f"if=none,id=drive{number},format=raw,cache=unsafe,discard=unmap,file={disk.path}"
        device = f"virtio-blk-pci,drive=drive{number},serial={disk.name}"
        if disk.read_only:
            drive += ",readonly=on"
        if disk.snapshot:
            drive += ",snapshot=on"
        if disk.block_size:
            device += f",logical_block_size={disk.block_size},physical_block_size={disk.block_size}"
        arguments += ["-drive", drive, "-device", device]
    return arguments


def die_with_parent():
    """In the guest's process before it starts: be killed when the runner is, however that ends."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def take_precedence():
    """In the guest's process before it starts: others wait for it, where we may ask for that.

    Its session is one group to the scheduler, if that makes groups, and a process' own
    priority counts within its group only.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        pathlib.Path("/proc/self/autogroup").write_text("-20")


def is_known(lines):
    """Whether a report, which begins with the first line, is the one that is not FUSE's fault."""
    if KNOWN not in lines[0]:
        return False
    stack = next((n for n, line in enumerate(lines) if line.endswith("Call Trace:")), None)
    if stack is None:
        return False
    # The stack ends at a line with nothing but the time.
    end = next((n for n in range(stack, len(lines)) if re.search(r"\]\s*$", lines[n])), len(lines))
    return all(any(part in line for line in lines[:end]) for part in KNOWN_PARTS)


def find_splats(*logs):
    """The lines in kernel logs that say that something is wrong."""
    seen = {}
    for log in logs:
        if not log.exists():
            continue
        lines = log.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if SPLAT.search(line) and not is_known(lines[number : number + 100]):
                # The same line is in both logs, in one after a time stamp.
                seen.setdefault(re.sub(r"^(<\d+>)?\[[ 0-9.]+\] ?(\[[^]]*\] ?)?", "", line), line)
    return list(seen.values())


def parse_output(text):
    """Cases in the guest program's output, and whether it came to its end."""
    cases = []
    finished = False
    for line in text.splitlines():
        line = line.rstrip()
        if match := OK.match(line):
            cases.append(Case(match[1], True))
        elif match := NOT_OK.match(line):
            cases.append(Case(match[1], False, match[2] or "no reason given"))
        if line:
            finished = line == "# done"
    return cases, finished


@dataclasses.dataclass
class Machine:
    """What a guest is made of."""

    image: pathlib.Path
    directory: pathlib.Path
    words: list
    disks: list
    memory: str
    cpus: int

    @property
    def console(self):
        return self.directory / "console.log"

    @property
    def stdout(self):
        return self.directory / "stdout.txt"

    @property
    def out(self):
        return self.directory / "out"


def qemu_command(guest, accel, icount):
    """QEMU with a small PC in it."""
    words = [
        "console=ttyS0", "root=fi_root", "rootfstype=9p",
        "rootflags=trans=virtio,version=9p2000.L,msize=262144,cache=loose,access=any", "ro",
        "mitigations=off", "no_timer_check", "tsc=reliable", "nokaslr", "random.trust_cpu=on",
        *guest.words,
    ]  # fmt: skip
    if accel == "kvm":
        machine = ["-machine", "q35,accel=kvm", "-cpu", "host"]
    elif icount:
        # The guest's clock then counts instructions, so that CPU time is
        # repeatable; that needs a single emulation thread. Waiting takes no time, but for
        # a disk: who waits for that would see the clock leap to whatever comes next.
        sleep = "on" if guest.disks else "off"
        machine = [
            "-machine", "q35", "-accel", "tcg,thread=single",
            "-icount", f"shift=0,sleep={sleep}", "-cpu", "max,erms=off,fsrm=off,la57=off",
        ]  # fmt: skip
    else:
        # Emulated "rep movsb" copies byte by byte, so the guest must not think
        # that it is fast.
        machine = [
            "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512",
            "-cpu", "max,erms=off,fsrm=off,la57=off",
        ]  # fmt: skip
    return [
        "qemu-system-x86_64", *machine, "-m", guest.memory, "-smp", str(guest.cpus),
        "-nodefaults", "-display", "none", "-no-reboot",
        "-serial", f"file:{guest.console}",
        "-kernel", str(guest.image), "-append", " ".join(words),
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=fi_root",
        "-fsdev", f"local,id=out,path={guest.out},security_model=none",
        "-device", "virtio-9p-pci,fsdev=out,mount_tag=fi_out",
        "-device", "virtio-rng-pci",
        "-device", "virtio-serial-pci",
        "-chardev", f"file,id=stdout,path={guest.stdout}",
        "-device", "virtserialport,chardev=stdout,name=fi.stdout",
        *disk_arguments(guest.disks),
    ]  # fmt: skip


def boot(
    kernel, command, name=None, disks=(), timeout=600, memory="2G", cpus=2,
    append="", plain=False, load_fuse=True, env=None, allow=(), echo=False,
    icount=False, image=None, urgent=False,
):  # fmt: skip
    """Boot a kernel, run a shell command in it, return a Result."""
    if image and kernel in UML:
        module = None
    else:
        built, module = kernel_paths(kernel)
        image = image or built
    name = name or kernel
    directory = CACHE / "vm" / name
    if directory.exists():
        shutil.rmtree(directory)
    out = directory / "out"
    out.mkdir(parents=True)
    console = directory / "console.log"
    stdout = directory / "stdout.txt"
    stdout.write_text("")

    variables = {
        "FI_BIN": str(CACHE / "cargo-target/release"),
        "FI_ROOT": str(ROOT),
        "FI_CACHE": str(CACHE),
        "FI_CWD": str(ROOT),
        "FI_KERNEL": kernel,
        "FI_FUSE_KO": str(module or ""),
        "FI_LOAD_FUSE": "1" if load_fuse else "0",
        "RUST_BACKTRACE": "1",
    }
    if kernel in UML:
        accel = "uml"
    else:
        accel = "kvm" if kvm_works(image) and not icount else "tcg"
    variables["FI_ACCEL"] = accel
    variables.update(env or {})
    (out / "env.sh").write_text(
        "".join(f"export {key}={shlex.quote(value)}\n" for key, value in variables.items())
    )
    (out / "command.sh").write_text(command + "\n")

    words = [f"init={ROOT}/tests/vm/init", "panic=-1", "oops=panic"]
    if module is None:
        words.append("fuse.enable_iomap=1")
    words += append.split()
    machine = Machine(image, directory, words, parse_disks(disks, directory), memory, cpus)
    terminal, kept = None, ()
    if accel == "uml":
        terminal = uml.Terminal(machine.stdout)
        kept = terminal.kept
        guest = uml.command(machine, terminal)
    else:
        guest = qemu_command(machine, accel, icount)
    (directory / "command.txt").write_text(shlex.join(guest) + "\n")

    trouble = []
    start = time.monotonic()

    def prepare():
        die_with_parent()
        if urgent:
            take_precedence()

    # What QEMU itself says, and what User Mode Linux's kernel says.
    with open(console if terminal else directory / "qemu.log", "wb") as log:
        process = subprocess.Popen(
            guest, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=prepare, pass_fds=kept,
        )  # fmt: skip
    if terminal:
        terminal.started(process.pid)
    shown = 0

    def show():
        nonlocal shown
        with open(stdout, "rb") as file:
            file.seek(shown)
            data = file.read()
        shown += len(data)
        if echo and data:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()

    try:
        while process.poll() is None:
            show()
            if time.monotonic() - start > timeout:
                trouble.append(f"the guest did not finish within {timeout} s")
                break
            time.sleep(0.1)
    finally:
        # Also on an interrupt: no guest is left behind.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if terminal:
            terminal.finish()
    show()

    output = stdout.read_text(errors="replace")
    status = None
    status_file = out / "status"
    if status_file.exists():
        status = int(status_file.read_text().strip() or -1)
    elif not trouble:
        trouble.append(
            "the guest died: "
            + (f"see {directory}" if process.returncode else "it powered off before its program ended")
        )
    cases, finished = parse_output(output)
    if plain:
        cases = []
        if status not in (0, None):
            trouble.append(f"the guest's program ended with status {status}")
    elif status is not None:
        if not finished:
            trouble.append(f"the guest's program ended (status {status}) without '# done'")
        elif status != 0 and all(case.ok for case in cases):
            trouble.append(f"the guest's program ended with status {status}, yet no case failed")
    splats = [
        line for line in find_splats(console, out / "dmesg.txt")
        if not any(re.search(pattern, line) for pattern in allow)
    ]  # fmt: skip
    for scratch in [*directory.glob("disk-*"), *directory.glob("cow-*")]:
        scratch.unlink()
    return Result(
        cases, status, trouble, splats, output, directory, time.monotonic() - start
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="x86", help="x86 (default), x86-debug, um or um-bench")
    parser.add_argument("--image", help="boot this image instead of the one that was built")
    parser.add_argument("--name", help="name of the run directory in $CACHE/vm (default: the kernel's)")
    parser.add_argument("--disk", action="append", default=[], metavar="NAME=PATH[,ro][,snap][,bs=N]",
                        help="attach a disk; PATH may be a size such as 512M for an empty one")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=600, help="seconds, default 600")
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--append", default="", help="more kernel parameters")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--plain", action="store_true", help="no case lines are expected")
    parser.add_argument("--no-fuse", action="store_true", help="do not load fuse.ko")
    parser.add_argument("--icount", action="store_true", help="the guest's clock counts instructions")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    # So that "finally" runs and QEMU ends with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))

    announce_acceleration(options.kernel)
    command = options.command[0] if len(options.command) == 1 else shlex.join(options.command)
    result = boot(
        options.kernel, command, name=options.name, disks=options.disk,
        timeout=options.timeout, memory=options.memory, cpus=options.cpus,
        append=options.append, plain=options.plain, load_fuse=not options.no_fuse,
        env=dict(item.split("=", 1) for item in options.env), echo=True,
        icount=options.icount, image=options.image,
    )  # fmt: skip
    stderr = result.directory / "out/stderr.txt"
    failed = [case for case in result.cases if not case.ok]
    if stderr.exists() and stderr.stat().st_size and (failed or not result.good()):
        print("---- the program's stderr, last lines:")
        print("\n".join(stderr.read_text(errors="replace").splitlines()[-20:]))
    for line in result.splats:
        print(f"kernel log: {line}")
    for line in result.trouble:
        print(f"error: {line}")
    print(
        f"# {len(result.cases) - len(failed)} ok, {len(failed)} not ok, "
        f"{result.seconds:.0f} s; console, output and the guest's command line in {result.directory}"
    )
    sys.exit(0 if result.good() and not failed else 1)


if __name__ == "__main__":
    main()
