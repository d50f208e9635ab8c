"""Detaching a device that nobody uses, decided by the kernel and not by a look at who might.

A look is late, and does not see everything: a virtual machine's plain open() shows in no list that a program with few
privileges may read. So: (1) open the device exclusively, which fails while it is mounted, or part of something;
(2) tell the driver to disconnect when it is closed for the last time; (3) close it. If it was the last time, it is
detached now. If not, somebody has it open: (4) the order is taken back. A crash in between leaves a device that its
last user detaches.
"""

from __future__ import annotations

import os
from typing import Protocol

from snapd.attach import genetlink
from snapd.attach.attach import backend_of
from snapd.attach.device import Device, try_exclusively
from snapd.attach.negotiate import Wait
from snapd.clock import boottime
from snapd.config import Config
from snapd.errors import CsnapError, Refused
from snapd.units import SECOND

PATIENCE = 8 * SECOND
"""udev opens a device when somebody has closed it, to see what is on it; on a busy machine for seconds."""

PAUSE = SECOND // 10


class Kernel(Protocol):
    def reconfigure(self, *, index: int, attributes: tuple[bytes, ...]) -> None: ...
    def disconnect(self, index: int) -> None: ...


def detach(config: Config, kernel: Kernel, device: Device, wait: Wait, force: bool = False) -> bool:
    """Return whether there was something to detach. force: also if it is in use; its users get errors then.

    Raises Refused: it is in use, or attached to something else.
    """
    backend = backend_of(config)
    found = device.backend
    if found is None:
        return False
    if found != backend:
        raise Refused(f"{device.path}: attached to {found!r}, not to {backend!r}: left alone")
    if force:
        kernel.disconnect(device.index)
    else:
        end = boottime() + PATIENCE
        while not _try(kernel, device, backend):
            if boottime() >= end:
                users = ", ".join(device.users()) or "a process has it open (fuser -v shows which)"
                raise Refused(f"{device.path}: in use: {users}")
            wait(boottime() + PAUSE, -1, 0)
    device.announce()
    return True


def _try(kernel: Kernel, device: Device, backend: str) -> bool:
    """Return whether it is detached."""
    descriptor = try_exclusively(device.path)
    if descriptor is None:
        return False
    try:
        _order(kernel, device, backend, genetlink.DISCONNECT_ON_CLOSE)
    finally:
        os.close(descriptor)
    if device.backend is None:
        return True
    try:
        _order(kernel, device, backend, 0)
    except CsnapError:
        if device.backend is not None:
            raise
        return True  # it was closed in between
    return False


def _order(kernel: Kernel, device: Device, backend: str, flags: int) -> None:
    """Say what is to be done when it is closed for the last time."""
    index = device.index
    attributes = (
        genetlink.u32(genetlink.INDEX, index),
        genetlink.u64(genetlink.CLIENT_FLAGS, flags),
        genetlink.text(genetlink.BACKEND, backend),
    )
    kernel.reconfigure(index=index, attributes=attributes)
