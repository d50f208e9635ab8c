"""What the worker asks of the kernel for itself: it is in the path of write-back and must not wait for memory.

mlockall       what was touched stays in memory: a page fault that must read the disk whose I/O this process
               serves would never end. ONFAULT: only what is touched counts.
IO_FLUSHER     the kernel's memory allocations on behalf of this process start no write-back that needs it
               (Linux 5.6; the flag exists for user-space block drivers).

Both need privileges (CAP_IPC_LOCK or LimitMEMLOCK=infinity, CAP_SYS_RESOURCE); without them csnap works, less
safely under memory pressure, and says so.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
PR_SET_IO_FLUSHER = 57
CAP_IPC_LOCK = 14

_libc = ctypes.CDLL(None, use_errno=True)


def protect() -> tuple[str, ...]:
    """Ask for both; return what was refused, for the log."""
    return tuple(filter(None, (_lock_memory(), _flush_io())))


def _lock_memory() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    if hard != resource.RLIM_INFINITY and not _capable(CAP_IPC_LOCK):
        # A limit that suffices now would make later allocations fail.
        return f"memory not locked: RLIMIT_MEMLOCK is {hard} bytes, expected infinity (or CAP_IPC_LOCK)"
    if _libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        return f"memory not locked: mlockall: {os.strerror(ctypes.get_errno())}"
    return ""


def _flush_io() -> str:
    if _libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        return f"PR_SET_IO_FLUSHER: {os.strerror(ctypes.get_errno())} (needs CAP_SYS_RESOURCE)"
    return ""


def _capable(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False
