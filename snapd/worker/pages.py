"""The pages that control and worker share: memfds of one incarnation, passed by descriptor.

deadline   word 0: boottime ns up to which the lease stands; 0: never granted. Written by control alone.
counters   see snapd.counters. Written by the worker alone.
trace      see snapd.trace. Written by the worker alone.

A word is stored and loaded whole (one aligned 8-byte access), so a reader sees the old value or the new one.
"""

from __future__ import annotations

import mmap
import os

from snapd import counters, trace

DEADLINE_BYTES = 4096


def create(name: str, size: int) -> tuple[int, memoryview]:
    """Return a new page's descriptor, and its 64-bit words for this process."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd, attach(fd, size)


def attach(fd: int, size: int) -> memoryview:
    """Return the 64-bit words of an inherited page."""
    return memoryview(mmap.mmap(fd, size)).cast("Q")


def create_deadline() -> tuple[int, memoryview]:
    """Return the deadline page: nothing is allowed yet."""
    return create("csnap-deadline", DEADLINE_BYTES)


def create_counters() -> tuple[int, memoryview]:
    """Return the counters page, all zero."""
    return create("csnap-counters", counters.PAGE_BYTES)


def create_trace() -> tuple[int, memoryview]:
    """Return the trace page, all zero."""
    return create("csnap-trace", trace.PAGE_BYTES)
