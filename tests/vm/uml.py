# SPDX-License-Identifier: GPL-2.0
"""User Mode Linux as a guest: a process that runs programs at the host's speed.

It has one processor and no modules; its disks have 512-byte sectors.
"""

import os
import sys
import threading


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

    def _copy(self, path):
        with open(path, "ab", buffering=0) as file:
            while data := os.read(self._output, 65536):
                file.write(data)

    def started(self):
        """The guest has its ends of the pipes."""
        os.close(self.input)
        os.close(self.output)

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
        f"uml_dir={guest.directory}/uml", "umid=guest", "kunit.enable=0",
        *guest.words,
        # The kernel hands these on to init as environment variables.
        f"fi_out={guest.out}",
        "fi_disks=" + ":".join(disk.name for disk in guest.disks),
        *disks,
    ]  # fmt: skip
