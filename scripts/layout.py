# SPDX-License-Identifier: GPL-2.0
"""Where what is in this repository lands in a kernel tree."""

import os
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = pathlib.Path(
    os.environ.get("FUSE_IOMAP_CACHE")
    or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    / "fuse-iomap"
)

# Directories and files, and where they land.
PLACES = [
    ("rust/fuse", "fs/fuse/iomap"),
    ("rust/kernel", "rust/kernel"),
    ("rust/helpers", "rust/helpers"),
    ("selftests", "tools/testing/selftests/filesystems/fuse"),
    ("Kbuild", "fs/fuse/iomap/Kbuild"),
]
DOCUMENTS = "Documentation/filesystems/fuse"


def die(text):
    """An error that ends the script."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


def our_files(root=ROOT):
    """Files of ours that are copied whole: {path in the kernel: file}."""
    files = {}
    for here, there in PLACES:
        source = root / here
        if source.is_file():
            files[there] = source
        elif source.is_dir():
            for file in sorted(source.rglob("*")):
                if file.is_file() and not file.name.startswith(".") and not file.name.endswith("~"):
                    files[f"{there}/{file.relative_to(source)}"] = file
    for file in sorted((root / "Documentation").glob("*.rst")):
        files[f"{DOCUMENTS}/{file.name}"] = file
    return files


def our_patches(root=ROOT):
    """The patches to files of the kernel, in their order."""
    return sorted((root / "patches").glob("*.patch"))


def patched_paths(patch):
    """The files that a patch reads or writes."""
    paths = set()
    for line in patch.read_text(errors="replace").splitlines():
        match = re.match(r"(?:--- a|\+\+\+ b)/([^\t]+)", line) or re.match(
            r"rename (?:from|to) (.+)", line
        )
        if match:
            paths.add(match[1].rstrip())
    return paths


def kernel_tree():
    """The kernel source in the cache, which has our work in it."""
    current = CACHE / "src/current"
    if not current.exists():
        die("no kernel source yet; run scripts/get-source")
    return pathlib.Path(current.read_text().strip())


def originals(tree):
    """Where the pristine files are kept that scripts/sync-tree has changed."""
    return tree.parent / tree.name.replace("linux-", "orig-")
