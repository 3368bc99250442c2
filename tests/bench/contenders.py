# SPDX-License-Identifier: GPL-2.0
"""What is compared: ways to have a filesystem on a disk. Runs in the guest."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import time

BIN = pathlib.Path(os.environ.get("FI_BIN", "/nonexistent"))
MOUNT = pathlib.Path("/mnt/bench")
BELOW = pathlib.Path("/mnt/below")
COUNTERS = pathlib.Path("/tmp/bench-counters")
# What one operation on data costs; OPEN and the like come once for each file.
UPCALLS = ("IOMAP_BEGIN", "IOMAP_END", "IOMAP_IOEND", "READ", "WRITE", "FSYNC")


class Impossible(Exception):
    """This cannot be measured here, for a reason that is not a fault of the benchmark."""


def run(*words):
    """A command that must succeed; the reason why not ends the measurement."""
    words = [str(word) for word in words]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no reason given"])[-1]
        raise Impossible(f"{words[0]} failed: {last}")
    return done.stdout


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way: `volume` is "ext4" with the journal or without, or "lab".

    `server` is the program that serves it, and `options` are its; none for the
    kernel's own. "through" has the kernel's ext4 below.
    """

    name: str
    title: str
    volume: str
    server: str = ""
    options: tuple = ()


REFERENCE = "ext4-nojournal"

CONTENDERS = [
    Contender("ext4", "the kernel's ext4, with journal", "ext4"),
    Contender(REFERENCE, "the kernel's ext4, without journal", "ext4-nojournal"),
    Contender("fuse", "our ext4 server by FUSE_READ and FUSE_WRITE", "ext4-nojournal", "ext4",
              ("--no-iomap",)),
    Contender("fuse-writeback", "the same with FUSE's writeback cache", "ext4-nojournal", "ext4",
              ("--no-iomap", "--writeback-cache")),
    Contender("passthrough", "FUSE passthrough to the kernel's ext4 without journal",
              "ext4-nojournal", "through"),
    Contender("iomap-nocache", "our ext4 server through iomap, mapping cache off",
              "ext4-nojournal", "ext4", ("--require-iomap", "--cache", "off")),
    Contender("iomap", "our ext4 server through iomap", "ext4-nojournal", "ext4",
              ("--require-iomap", "--cache", "replies")),
    Contender("iomap-journal", "our ext4 server through iomap, with journal", "ext4", "ext4",
              ("--require-iomap", "--cache", "replies")),
    Contender("lab-in-place", "lab through iomap, blocks in place", "lab", "lab",
              ("--policy", "in-place", "--cache", "replies")),
    Contender("lab-unwritten", "lab through iomap, new blocks unwritten", "lab", "lab",
              ("--policy", "unwritten", "--cache", "replies")),
]  # fmt: skip

# What is measured every day.
QUICK = (REFERENCE, "iomap-nocache", "iomap")


class Mounted:
    """A contender's filesystem on a disk: made, mounted, and taken down again."""

    def __init__(self, contender, device):
        self.contender = contender
        self.device = device
        self.server = None
        self.mounted = []

    def make(self):
        """An empty volume."""
        if self.contender.volume == "lab":
            run("wipefs", "-q", "-a", self.device)
            return
        features = "^has_journal" if self.contender.volume == "ext4-nojournal" else "has_journal"
        # Nothing is left for the kernel to initialise while we measure, and blocks of a RAM disk
        # are not given back to the guest.
        run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", features,
            "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", self.device)  # fmt: skip

    def mount(self):
        MOUNT.mkdir(parents=True, exist_ok=True)
        server = self.contender.server
        if server in ("", "through"):
            below = BELOW if server else MOUNT
            below.mkdir(parents=True, exist_ok=True)
            run("mount", "-t", "ext4", self.device, below)
            self.mounted.append(below)
        if server:
            self._serve(server)

    def mount_by_kernel(self):
        """The kernel's own mount of an ext4 volume."""
        MOUNT.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "ext4", self.device, MOUNT)
        self.mounted.append(MOUNT)
        return MOUNT

    def _serve(self, server):
        program = BIN / server
        if not program.exists():
            raise Impossible(f"there is no program '{server}'")
        options = list(self.contender.options)
        if "--cache" in options and "--cache" not in self._help(program):
            where = options.index("--cache")
            if options[where + 1] != "off":
                raise Impossible(f"this {server} has no --cache")
            del options[where : where + 2]
        if server == "ext4":
            words = ["--foreground", "--stats", COUNTERS, *options, self.device, MOUNT]
        elif server == "lab":
            words = ["serve", "--no-fill", "--counters", COUNTERS, *options, "--device", self.device, MOUNT]
        else:
            words = ["--stats", COUNTERS, BELOW, MOUNT]
        COUNTERS.unlink(missing_ok=True)
        with open("/tmp/bench-server.err", "w+b") as errors:
            self.server = subprocess.Popen(
                [str(program), *map(str, words)], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
            while not os.path.ismount(MOUNT):
                if self.server.poll() is not None:
                    self.server = None
                    errors.seek(0)
                    said = errors.read().decode(errors="replace").strip().splitlines()
                    raise Impossible(said[-1] if said else f"{server} ended without a word")
                time.sleep(0.01)
        self.mounted.append(MOUNT)
        # The mount is there before INIT is answered.
        os.statvfs(MOUNT)

    @staticmethod
    def _help(program):
        words = [program, "serve", "--help"] if program.name == "lab" else [program, "--help"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return re.findall(r"--[a-z-]+", done.stdout + done.stderr)

    def upcalls(self):
        """Requests that the server has received, by name; none for the kernel's own."""
        if not self.server:
            return {}
        COUNTERS.unlink(missing_ok=True)
        self.server.send_signal(signal.SIGUSR1)
        for _ in range(2000):
            # It is written under another name first.
            if COUNTERS.exists():
                lines = COUNTERS.read_text().splitlines()
                return {name: int(value) for name, value in (line.split() for line in lines)}
            time.sleep(0.005)
        raise Impossible("the server does not write its counters")

    def unmount(self):
        """Raises Impossible if the server fails, which lab does if the kernel breaks a rule."""
        for mountpoint in reversed(self.mounted):
            run("umount", mountpoint)
            if self.server and mountpoint == MOUNT:
                server, self.server = self.server, None
                if server.wait(60):
                    said = pathlib.Path("/tmp/bench-server.err").read_text(errors="replace")
                    raise Impossible("the server failed: " + said.strip()[-300:])
        self.mounted = []

    def abandon(self):
        """After an error: leave nothing behind."""
        if self.server:
            self.server.kill()
            self.server.wait()
            self.server = None
        for mountpoint in reversed(self.mounted):
            subprocess.run(["umount", "-l", str(mountpoint)], check=False)
        self.mounted = []

    def check(self):
        """Is the unmounted volume in order? An empty text if it is."""
        if self.contender.volume == "lab":
            return ""
        done = subprocess.run(["e2fsck", "-fn", str(self.device)], capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout[-400:]
