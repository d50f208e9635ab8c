"""One attach program for a device: it has a socket's name in the abstract namespace, until its process has ended.

No lock file: the unit can write to no folder that others cannot, and a reload makes a new program run in the old
unit's sandbox. No flock in sysfs: whoever may read a file may hold it. Of a name the kernel says who has it, and one
that belongs to neither root nor ourselves is no attach program's. It is in the network namespace, as is the driver's
netlink family. Over SIGHUP's exec the descriptor is inherited: the next program finds that its own process has it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from snapd.errors import Refused

QUEUE = 4096
"""Of those who asked, whom nobody accepts. Once it is full the kernel does not say who has the name."""

_TRUSTED = frozenset({0, os.geteuid()})

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid of who called listen()


def claim(index: int, device: str) -> int:
    """Be the only attach program of the device, as long as this process lives; return the descriptor that says so.

    -1: no attach program has it, but it cannot be had, or this process has it already. Raises Refused: another has.
    """
    name = f"\0csnap attach nbd{index}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(name)
        sock.listen(QUEUE)
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise Refused(f"{device}: cannot be claimed: {error.strerror}") from error
    else:
        sock.set_inheritable(True)
        return sock.detach()
    holder = _holder(name)
    if holder not in (None, os.getpid()):
        raise Refused(f"{device}: another `csnap attach` keeps it attached, process {holder}: stop that one first")
    return -1


def _holder(name: str) -> int | None:
    """Return the process that has the name; None: it has gone, is no attach program, or the kernel does not say."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(name)
        except OSError:
            return None
        pid, uid, _ = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid if uid in _TRUSTED else None
