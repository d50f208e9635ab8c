"""The guest's whole root: an initramfs of busybox, dmsetup, GNU dd, a few modules and the test's own files.

Written as a newc archive here, so neither cpio nor root is needed. Some 5 MB, made anew for every boot.
"""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.kernel.support.kernel import Kernel, KernelError, decompress

HERE = Path(__file__).parent
MODULES = ("virtio_mmio", "virtio_blk", "dm-mod", "dm-snapshot")
"""What every guest loads."""
PROGRAMS = ("/usr/sbin/dmsetup", "/bin/dd")
"""busybox's own dd ignores oflag=direct without a word."""
BUSYBOX = Path("/usr/bin/busybox")


class Archive:
    """A newc cpio archive; folders appear as they are needed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def file(self, path: str, data: bytes, mode: int = 0o755) -> None:
        self._add(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str) -> None:
        self._add(path, stat.S_IFDIR | 0o755)

    def device(self, path: str, mode: int, major: int, minor: int) -> None:
        self._add(path, mode, device=(major, minor))

    def to_bytes(self) -> bytes:
        return b"".join([*self._parts, _member("TRAILER!!!", 0, b"", 0, (0, 0))])

    def _add(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        path = path.strip("/")
        if not path or path in self._names:
            return
        self.folder(path.rpartition("/")[0])
        self._names.add(path)
        self._parts.append(_member(path, mode, data, len(self._names), device))


def _member(name: str, mode: int, data: bytes, inode: int, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def initrd(
    kernel: Kernel, script: str, modules: Iterable[str], programs: Iterable[str], files: Mapping[str, bytes]
) -> bytes:
    """Return an initramfs that runs ``script`` with busybox's sh."""
    archive = Archive()
    for folder in ("proc", "sys", "dev", "run", "tmp", "mnt"):
        archive.folder(folder)
    archive.device("dev/console", stat.S_IFCHR | 0o600, 5, 1)
    for program in (*PROGRAMS, *programs):
        _add_program(archive, program)
    if not BUSYBOX.exists():
        raise KernelError(f"{BUSYBOX}: not installed (package busybox-static)")
    archive.file("bin/busybox", BUSYBOX.read_bytes())
    for applet in subprocess.run([BUSYBOX, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split():
        archive.link(f"bin/{applet}", "busybox")
    archive.file("init", (HERE / "init.sh").read_bytes())
    archive.file("lib/guest.sh", (HERE / "guest.sh").read_bytes())
    archive.file("test.sh", script.encode())
    for path, data in files.items():
        archive.file(path, data)
    _add_modules(archive, kernel, (*MODULES, *modules))
    return archive.to_bytes()


def _add_program(archive: Archive, path: str) -> None:
    """A program and the shared libraries that ldd names."""
    if not Path(path).exists():
        raise KernelError(f"{path}: not installed")
    archive.file(path, Path(path).read_bytes())
    listed = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    for library in re.findall(r"(/\S+) \(0x", listed.stdout):
        archive.file(library, Path(library).read_bytes())


def _add_modules(archive: Archive, kernel: Kernel, names: Iterable[str]) -> None:
    """Each module as /lib/m/<name>.ko, and beside it the order in which it and what it needs are loaded.

    What is no module of this kernel is taken to be built in.
    """
    index = kernel.modules()
    orders: dict[str, list[str]] = {}

    def order(name: str) -> list[str]:
        name = name.replace("-", "_")
        if name in orders or name not in index:
            return orders.get(name, [])
        path = index[name]
        data = path.read_bytes()
        if path.suffix != ".ko":
            data = decompress(data)
        archive.file(f"lib/m/{name}.ko", data, 0o644)
        needed = re.search(rb"\0depends=([^\0]*)\0", data)
        found: list[str] = []
        for other in needed[1].decode().split(",") if needed else ():
            found += [one for one in order(other) if one not in found]
        orders[name] = [*found, name]
        archive.file(f"lib/m/{name}.order", " ".join(orders[name]).encode(), 0o644)
        return orders[name]

    for name in names:
        order(name)
