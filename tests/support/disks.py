"""Real disks for tests: files on several file systems and loop devices, as far as this machine can make them.

Each is a context manager that yields a path and cleans up behind itself.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from snapd.units import MIB

SIZE = 4 * MIB
Disk = Callable[[], AbstractContextManager[str]]


@contextmanager
def file_disk(directory: str | None = None) -> Iterator[str]:
    """A sparse file of SIZE bytes in ``directory`` (None: where temporary files go)."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix="csnap-test-") as file:
        file.truncate(SIZE)
        yield file.name


@contextmanager
def loop_disk(logical_block: int) -> Iterator[str]:
    """A loop device of SIZE bytes; root only."""
    with file_disk() as backing, attached(backing, logical_block) as path:
        yield path


@contextmanager
def attached(backing: str, logical_block: int = 512, offset: int = 0) -> Iterator[str]:
    """A loop device over the file ``backing``."""
    options = ["--direct-io=on", f"--sector-size={logical_block}", f"--offset={offset}"]
    command = ["losetup", "--find", "--show", *options, backing]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield path
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)


@contextmanager
def mounted(kind: str, options: str = "") -> Iterator[str]:
    """A fresh file system in memory of ``kind``, e.g. ramfs, which refuses O_DIRECT; root only."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="csnap-test-"))
        command = ["mount", "-t", kind, *(["-o", options] if options else []), "csnap-test", directory]
        subprocess.run(command, check=True, capture_output=True)
        stack.callback(subprocess.run, ["umount", directory], check=True)
        yield directory


@contextmanager
def page_cached_disk() -> Iterator[str]:
    """A file that cannot be opened with O_DIRECT; root only."""
    with mounted("ramfs") as directory, file_disk(directory) as path:
        yield path


def _works(disk: Disk) -> bool:
    try:
        with disk() as path:
            return Path(path).exists()
    except (OSError, subprocess.CalledProcessError):
        return False


@functools.cache
def disks() -> dict[str, Disk]:
    """Return every kind of disk that can be made here, by name."""
    found: dict[str, Disk] = {"file": file_disk}
    if Path("/dev/shm").is_dir():
        found["shm"] = functools.partial(file_disk, "/dev/shm")
    found |= {f"loop-{block}": functools.partial(loop_disk, block) for block in (512, 4096) if can_attach()}
    if can_mount():
        found["page-cached"] = page_cached_disk
    return found


@functools.cache
def can_attach() -> bool:
    """Whether loop devices can be made here."""
    return _works(functools.partial(loop_disk, 4096))


@functools.cache
def can_mount() -> bool:
    """Whether file systems can be mounted here."""
    return _works(page_cached_disk)
