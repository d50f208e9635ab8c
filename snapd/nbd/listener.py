"""The listening socket: made where nothing lives, refused where something does."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from snapd.errors import Refused

MAX_PATH = 107
"""Bytes: sockaddr_un has 108 with the terminating zero."""

BACKLOG = 1024
"""Clients that may wait to be accepted; the kernel lowers it to net.core.somaxconn."""


def listen(path: str, mode: int) -> socket.socket:
    """Return a non-blocking stream socket that listens at ``path`` with permissions ``mode``.

    A socket file that nobody listens on is replaced. Raises Refused if somebody does, if the file is
    not a socket, or if the path is too long.
    """
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise Refused(f"socket {path}: its path has {length} bytes, at most {MAX_PATH} fit")
    _remove_dead(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o777 & ~mode)  # not chmod afterwards: it would follow what somebody puts in the file's place
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Refused(f"socket {path}: {error.strerror}") from error
    return sock


def _remove_dead(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Refused(f"socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise Refused(f"socket {path}: a file that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError as error:  # EAGAIN: it listens and its backlog is full; EACCES: cannot be told
            raise Refused(f"socket {path}: in use, or not to be looked at ({error.strerror})") from error
        else:
            raise Refused(f"socket {path}: somebody listens on it")
    try:
        Path(path).unlink()
    except OSError as error:
        raise Refused(f"socket {path}: nobody listens on it, but it cannot be removed: {error.strerror}") from error
