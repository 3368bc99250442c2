# SPDX-License-Identifier: GPL-2.0
"""User Mode Linux as a guest: a process that runs programs at the host's speed.

It has one processor and no modules; its disks have 512-byte sectors.
"""

import os
import pathlib
import sys
import threading
import time


class Clock:
    """Tells the guest, on its third console, how much processor time it has taken on the host.

    In the guest itself time passes also while other processes of the host run. Each byte that comes
    in is answered by a line with nanoseconds.
    """

    def __init__(self):
        self._asked, self.output = os.pipe()
        self.input, self._answer = os.pipe()

    def start(self, session):
        """The guest runs; `session` is that of all its processes."""
        os.close(self.input)
        os.close(self.output)
        threading.Thread(target=self._serve, args=(session,), daemon=True).start()

    def _serve(self, session):
        # The benchmark keeps the guest to one processor, where an answer would come too late.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        with open(self._asked, "rb", buffering=0) as asked, open(self._answer, "wb", buffering=0) as answer:
            while asked.read(1):
                try:
                    answer.write(b"%d\n" % processor_time(session))
                except BrokenPipeError:
                    return


def processor_time(session):
    """Nanoseconds of all processes of a session that live.

    For those that have ended the host counts in hundredths of a second, too coarse to be of use.
    """
    total = 0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            # The clock of a process, as clock_getcpuclockid(3) makes its number.
            total += time.clock_gettime_ns((~int(stat.parent.name) << 3) | 2)
        except (OSError, IndexError):
            # It has ended meanwhile.
            continue
    return total


class Terminal:
    """What the guest's second console is connected to: its output goes to a file.

    A terminal's output is with the host at once, a file on hostfs is not. User
    Mode Linux waits for its consoles with epoll, which refuses plain files, so
    there is a pipe in between.
    """

    def __init__(self, path):
        self.input, self._never_written = os.pipe()
        self._output, self.output = os.pipe()
        self._thread = threading.Thread(target=self._copy, args=(path,))
        self._thread.start()
        self.clock = Clock()
        # What the guest inherits.
        self.kept = (self.input, self.output, self.clock.input, self.clock.output)

    def _copy(self, path):
        with open(path, "ab", buffering=0) as file:
            while data := os.read(self._output, 65536):
                file.write(data)

    def started(self, session):
        """The guest has its ends of the pipes; `session` is that of its processes."""
        os.close(self.input)
        os.close(self.output)
        self.clock.start(session)

    def finish(self):
        """The guest is gone: wait for the rest of what it said."""
        self._thread.join()
        os.close(self._output)
        os.close(self._never_written)


def command(guest, terminal):
    """The command that boots it; `guest` is a Machine of run.py."""
    disks = []
    for number, disk in enumerate(guest.disks):
        if disk.block_size not in (None, 512):
            sys.exit(f"error: disk {disk.name}: User Mode Linux has 512-byte sectors only")
        path, flag = disk.path, ""
        if disk.snapshot:
            # What is written goes to a file of its own.
            path = f"{guest.directory}/cow-{disk.name},{path}"
        elif disk.read_only:
            flag = "r"
        disks.append(f"ubd{number}{flag}={path}")
    return [
        str(guest.image), f"mem={guest.memory}", "seccomp=on",
        "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
        # The kernel's messages, and the program's output.
        "con0=fd:0,fd:1", f"con1=fd:{terminal.input},fd:{terminal.output}",
        f"con2=fd:{terminal.clock.input},fd:{terminal.clock.output}",
        f"uml_dir={guest.directory}/uml", "umid=guest", "kunit.enable=0",
        *guest.words,
        # The kernel hands these on to init as environment variables.
        f"fi_out={guest.out}",
        "fi_disks=" + ":".join(disk.name for disk in guest.disks),
        *disks,
    ]  # fmt: skip
