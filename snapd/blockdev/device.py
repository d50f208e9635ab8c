"""Opening a disk: a block device or a regular file, O_DIRECT, and what it says of itself."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from errno import EBUSY, EINVAL, ENXIO
from pathlib import Path
from struct import Struct

from snapd.blockdev.base import rows_of
from snapd.errors import Refused
from snapd.units import SECTOR

BLKSSZGET = 0x1268  # int: the logical block
BLKGETSIZE64 = 0x80081272  # u64: bytes

LOGICAL_BLOCKS = (512, 4096)

AT_EMPTY_PATH = 0x1000
STATX_DIOALIGN = 0x2000  # since Linux 6.1
STATX_BYTES = 256
STATX_MASK, STATX_ALIGNMENT = Struct("<I"), Struct("<II")  # at 0; at 0x98: of memory, of offset and length
STATX_ALIGNMENT_AT = 0x98

_libc = ctypes.CDLL(None, use_errno=True)


class FileDevice:
    """An open disk; see ``base.Device``. ``fua`` is cleared by the engine when the kernel refuses RWF_DSYNC."""

    __slots__ = ("direct", "fd", "flush_row", "fua", "identity", "logical_block", "path", "read_only", "read_row",
                 "size", "write_row")  # fmt: skip

    def __init__(
        self, path: str, fd: int, *, direct: bool, read_only: bool, logical_block: int | None, backend: str = ""
    ) -> None:
        self.path = path
        self.fd = fd
        self.direct = direct
        self.read_only = read_only
        self.read_row, self.write_row, self.flush_row = rows_of(backend)
        self.fua = True
        status = os.fstat(fd)
        block_device = stat.S_ISBLK(status.st_mode)
        found = _sector_size(fd) if block_device else _file_alignment(fd, direct)
        self.logical_block = logical_block or found
        self.size = _device_size(fd) if block_device else status.st_size
        self.identity = _device_identity(status.st_rdev) if block_device else _file_identity(status)
        self._check()

    def _check(self) -> None:
        block = self.logical_block
        if block not in LOGICAL_BLOCKS:
            raise Refused(f"{self.path}: logical block of {block} bytes: expected one of {LOGICAL_BLOCKS}")
        if self.size <= 0 or self.size % block:
            raise Refused(
                f"{self.path}: size of {self.size} bytes: expected a positive multiple of its logical block, {block}"
            )

    def close(self) -> None:
        """Close it. Nothing may be in flight."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __repr__(self) -> str:
        return f"FileDevice({self.path!r}, {self.size} bytes, {self.identity!r})"


def open_device(
    path: str, *, exclusive: bool, read_only: bool = False, logical_block: int | None = None, backend: str = ""
) -> FileDevice:
    """Open the disk at ``path``, with O_DIRECT unless its file system refuses that.

    exclusive: of a block device, that nobody else mounts or exclusively opens it from now on.
    logical_block: for tests: take this for the logical block, whatever the device says.
    backend: ``origin`` or ``cow``: an engine counts its operations as such; "": not at all.

    Raises Refused for anything that is not a disk, or not to be had.
    """
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hang
    mode = _mode(path)
    if exclusive and stat.S_ISBLK(mode):
        flags |= os.O_EXCL
    direct = True
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != EINVAL:
            raise _refusal(path, error) from None
        direct = False
        try:
            fd = os.open(path, flags)
        except OSError as again:
            raise _refusal(path, again) from None
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(mode):
            raise Refused(f"{path}: replaced by something else while it was opened")
        os.set_blocking(fd, True)
        return FileDevice(path, fd, direct=direct, read_only=read_only, logical_block=logical_block, backend=backend)
    except BaseException:
        os.close(fd)
        raise


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFSOCK: "a socket",
}


def _mode(path: str) -> int:
    """Return the st_mode of a block device or regular file; Refused for anything else."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from None
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        kind = _KINDS.get(stat.S_IFMT(mode), "neither")
        raise Refused(f"{path}: is {kind}: expected a block device or a regular file")
    return mode


def _refusal(path: str, error: OSError | ValueError) -> Refused:
    if isinstance(error, ValueError):
        return Refused(f"{path!r}: not a path: {error}")
    if error.errno == EBUSY:
        return Refused(
            f"{path}: busy: it is mounted, used by LVM, device-mapper, RAID or swap, or open exclusively by another"
            " process (see lsblk, fuser); release it first, or name another device"
        )
    if error.errno == ENXIO:
        return Refused(f"{path}: no device behind it (detached, or a loop device without a file)")
    return Refused(f"{path}: cannot be opened: {os.strerror(error.errno or EINVAL)}")


def _sector_size(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, BLKSSZGET, bytes(4)), "little")


def _device_size(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)), "little")


def _file_alignment(fd: int, direct: bool) -> int:
    """Return what O_DIRECT on this file must be aligned to; 512 when it need not be, or nobody knows."""
    if not direct or not hasattr(_libc, "statx"):
        return SECTOR
    buffer = ctypes.create_string_buffer(STATX_BYTES)
    if _libc.statx(fd, b"", AT_EMPTY_PATH, STATX_DIOALIGN, buffer):
        return SECTOR
    if not STATX_MASK.unpack_from(buffer, 0)[0] & STATX_DIOALIGN:
        return SECTOR
    memory, transfer = STATX_ALIGNMENT.unpack_from(buffer, STATX_ALIGNMENT_AT)
    return max(SECTOR, int(memory), int(transfer))


def _file_identity(status: os.stat_result) -> str:
    return f"file:{status.st_dev}:{status.st_ino}"


def _device_identity(number: int) -> str:
    """Return what names the hardware on every path to it, as far as sysfs tells; else the device number.

    A partition is its disk's identity and its own start, since its number may differ between hosts.
    """
    name = f"{os.major(number)}:{os.minor(number)}"
    directory = Path("/sys/dev/block") / name
    start = _attribute(directory / "start") if (directory / "partition").exists() else ""
    disk = directory.resolve().parent if start else directory
    backing = _attribute(disk / "loop" / "backing_file")
    if backing:
        hardware = _loop_identity(backing, _attribute(disk / "loop" / "offset"))
    else:
        attributes = ("dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "md/uuid")
        found = ((key.split("/")[-1], _attribute(disk / key)) for key in attributes)
        hardware = next((f"{key}:{value}" for key, value in found if value), "")
    if not hardware:
        return f"dev:{name}"
    return f"{hardware}+{start}" if start else hardware


def _loop_identity(backing: str, offset: str) -> str:
    """A loop device is the file behind it, as every loop device over that file is."""
    try:
        status = Path(backing).stat()
    except OSError:  # deleted, or in another mount namespace
        return ""
    return f"loop:{status.st_dev}:{status.st_ino}" + (f"@{offset}" if offset != "0" else "")


def _attribute(path: Path) -> str:
    """Return the text of a sysfs attribute, "" if there is none."""
    try:
        return " ".join(path.read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return ""
