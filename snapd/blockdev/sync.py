"""Reading and writing a disk at once, for tools and for what happens once: check, dump, formatting."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from errno import EINVAL, EIO

from snapd.blockdev.device import FileDevice
from snapd.errors import DeviceError


def pread(device: FileDevice, offset: int, length: int) -> bytes:
    """Return ``length`` bytes at ``offset``, aligned or not. Raises DeviceError, EIO when they are not all there."""
    if not length:
        return b""
    block = device.logical_block
    begin = offset // block * block
    size = -(-(offset + length) // block) * block - begin
    what = f"{device.path}: read of {length} bytes at {offset}"
    if offset < 0 or offset + length > device.size:
        raise DeviceError(what, EIO)
    with mmap.mmap(-1, size) as buffer, memoryview(buffer) as view:
        got = 0
        while got < size:
            got += _step(what, lambda at: os.preadv(device.fd, [view[at:]], begin + at), got)
        return bytes(view[offset - begin : offset - begin + length])


def pwrite(device: FileDevice, offset: int, data: bytes) -> None:
    """Write ``data`` at ``offset``, both multiples of the logical block. Not durable before ``fsync``."""
    what = f"{device.path}: write of {len(data)} bytes at {offset}"
    if (offset | len(data)) % device.logical_block:
        raise DeviceError(what, EINVAL)
    if offset < 0 or offset + len(data) > device.size:
        raise DeviceError(what, EIO)
    if not data:
        return
    with mmap.mmap(-1, len(data)) as buffer, memoryview(buffer) as view:
        view[:] = data
        sent = 0
        while sent < len(data):
            sent += _step(what, lambda at: os.pwritev(device.fd, [view[at:]], offset + at), sent)


def fsync(device: FileDevice) -> None:
    """Bring everything written onto stable storage. Raises DeviceError."""
    try:
        os.fdatasync(device.fd)
    except OSError as error:
        raise DeviceError(f"{device.path}: flush", error.errno or EIO) from error


def _step(what: str, transfer: Callable[[int], int], at: int) -> int:
    try:
        count = transfer(at)
    except OSError as error:
        raise DeviceError(what, error.errno or EIO) from error
    if count <= 0:
        raise DeviceError(what, EIO)
    return count
