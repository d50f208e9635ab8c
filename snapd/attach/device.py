"""A device of the kernel's NBD client, as sysfs shows it; who uses it; what of its queue is set.

/sys/block/nbdN/backend   the identifier that CONNECT gave; there while it is attached (Linux 5.14)
               /pid       there while it is attached by anybody
               /uevent    written after attaching and detaching: the kernel announces before ``backend`` is there
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from snapd.errors import CsnapError

SECTOR = 512

QUEUE = {"io_timeout": "2000", "max_sectors_kb": "1024", "read_ahead_kb": "1024"}
"""io_timeout: milliseconds, the only thing that ends a request which was sent on a connection that is dead now: with
one connection and no request timeout, the driver looks at it no earlier, and then sends it on the new one. So it is
what a crash costs at least. A request that is only slow is waited for again (and named in the kernel's log).
max_sectors_kb: a slot of the worker's arena; the driver's own 128 cuts large requests into small ones."""


class Device:
    """``/dev/nbd<index>``; the roots are for tests."""

    def __init__(self, index: int, sysfs: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        self.index = index
        self.path = f"/dev/nbd{index}"
        self._block = sysfs / "block" / f"nbd{index}"
        self._proc = proc

    def _read(self, name: str) -> str | None:
        try:
            return (self._block / name).read_text().strip()
        except OSError as error:
            # ENODEV, ENXIO: it is being detached in this moment
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                return None
            raise CsnapError(f"{self._block / name}: {error.strerror}") from error

    @property
    def backend(self) -> str | None:
        """None: not attached; "": attached by a client that does not say to what."""
        found = self._read("backend")
        return found if found is not None or self._read("pid") is None else ""

    @property
    def size(self) -> int:
        return int(self._read("size") or 0) * SECTOR

    @property
    def read_only(self) -> bool:
        return self._read("ro") == "1"

    @property
    def block(self) -> int:
        """Of the logical block, in bytes."""
        return int(self._read("queue/logical_block_size") or 0)

    @property
    def inflight(self) -> int:
        """Requests that were handed to the driver and are not answered."""
        return sum(map(int, (self._read("inflight") or "0").split()))

    @property
    def completed(self) -> int:
        """Requests that ended since boot: of /sys/block/*/stat the reads, writes, discards and flushes."""
        words = (self._read("stat") or "").split()
        return sum(int(word) for word in words[0:1] + words[4:5] + words[11:12] + words[15:16])

    def tune(self) -> list[str]:
        """Set the queue; return what was refused, as text."""
        refused = []
        for name, value in QUEUE.items():
            try:
                (self._block / "queue" / name).write_text(value)
            except OSError as error:
                refused.append(f"{self._block}/queue/{name} = {value}: {error.strerror}")
        return refused

    def announce(self) -> None:
        """Have udev look at it again."""
        try:
            (self._block / "uevent").write_text("change")
        except OSError as error:
            raise CsnapError(f"{self._block}/uevent: {error.strerror}") from error

    def users(self) -> list[str]:
        """Return what keeps it and its partitions in use, as far as this process can see."""
        found = []
        parts = [self._block, *sorted(self._block.glob(f"{self._block.name}p*"))]
        for part in parts:
            found += [f"{one.name} holds {part.name}" for one in sorted((part / "holders").glob("*"))]
        numbers = {path.read_text().strip() for part in parts if (path := part / "dev").exists()}
        for line in self._lines("self/mountinfo"):
            if len(words := line.split(" ")) > 4 and words[2] in numbers:
                found.append(f"mounted on {words[4]}")
        names = {f"/dev/{part.name}" for part in parts}
        found += [
            f"swap on {words[0]}" for line in self._lines("swaps") if (words := line.split())[:1] and words[0] in names
        ]
        return found

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._proc / name).read_text(errors="replace").splitlines()
        except OSError:
            return []


def is_held(inode: int, listing: Path = Path("/proc/net/unix")) -> bool:
    """Whether a unix socket is still open somewhere: of one that this process has closed, whether the kernel's client
    has taken it. RECONFIGURE does not say: it succeeds too when the old connection lives and the new one is ignored."""
    wanted = str(inode)
    with open(listing, encoding="ascii", errors="replace") as file:
        next(file, "")
        return any(len(words := line.split(None, 7)) > 6 and words[6] == wanted for line in file)


def try_exclusively(path: str) -> int | None:
    """Open it as who mounts it would: None, if somebody has. Raises CsnapError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return None
        raise CsnapError(f"{path}: {error.strerror}") from error
