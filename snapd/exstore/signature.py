"""What is on a device, as libblkid sees it: file systems, RAID and LVM members, partition tables.

The library of util-linux, by ctypes: the same eyes as ``blkid``, ``wipefs`` and ``mkfs`` have.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from snapd.blockdev.device import FileDevice
from snapd.errors import Refused

LIBRARY = "libblkid.so.1"
SUPERBLOCK_TYPE = 1 << 5  # BLKID_SUBLKS_TYPE: note what it is under the name TYPE
FOUND, NOTHING, AMBIVALENT = 0, 1, -2  # blkid_do_safeprobe(3)


@cache
def _library(name: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(name, use_errno=True)
        library.blkid_new_probe.restype = ctypes.c_void_p
        library.blkid_free_probe.argtypes = [ctypes.c_void_p]
        library.blkid_free_probe.restype = None
        library.blkid_probe_set_device.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        for function in (library.blkid_probe_enable_superblocks, library.blkid_probe_enable_partitions):
            function.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.blkid_probe_set_superblocks_flags.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.blkid_do_safeprobe.argtypes = [ctypes.c_void_p]
        library.blkid_probe_lookup_value.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_char_p),
            ctypes.POINTER(ctypes.c_size_t),
        ]
    except (OSError, AttributeError) as error:
        raise Refused(f"{name}: {error}: without it nobody can tell whether a device is in use") from None
    return library


def signature(device: FileDevice, library: str = LIBRARY) -> str:
    """Return the name of the signature on ``device`` ("ext4", "gpt", ...), "" for none.

    Raises Refused if the library is missing or the probe fails.
    """
    blkid = _library(library)
    # A second way to the same file, through the page cache: libblkid reads with buffers O_DIRECT does not take.
    fd = os.open(f"/proc/self/fd/{device.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # another host may have written since
        probe = blkid.blkid_new_probe()
        if not probe:
            raise Refused(f"{device.path}: {library}: no memory for a probe")
        try:
            return _probe(blkid, probe, device, fd)
        finally:
            blkid.blkid_free_probe(probe)
    finally:
        os.close(fd)


def _probe(blkid: ctypes.CDLL, probe: int, device: FileDevice, fd: int) -> str:
    ready = (
        blkid.blkid_probe_set_device(probe, fd, 0, 0) == 0
        and blkid.blkid_probe_enable_superblocks(probe, 1) == 0
        and blkid.blkid_probe_set_superblocks_flags(probe, SUPERBLOCK_TYPE) == 0
        and blkid.blkid_probe_enable_partitions(probe, 1) == 0
    )
    result = blkid.blkid_do_safeprobe(probe) if ready else -1
    if result == NOTHING:
        return ""
    if result == AMBIVALENT:
        return "several signatures"
    if result != FOUND:
        raise Refused(f"{device.path}: {LIBRARY}: probing for signatures failed ({result})")
    value, length = ctypes.c_char_p(), ctypes.c_size_t()
    for key in (b"TYPE", b"PTTYPE"):
        if blkid.blkid_probe_lookup_value(probe, key, ctypes.byref(value), ctypes.byref(length)) == 0:
            return (value.value or b"?").decode("ascii", "replace")
    return "an unnamed signature"
