"""The lock file of one daemon: held (flock) by the control process and by its worker until both have ended.

A flock belongs to the open file, which control and worker share: it is free only when the last of them has exited,
and a worker exits only after its AIO has ended. So whoever takes it knows that no process of an older incarnation
writes any more. That is the proof a restarted node needs to clean up its own old holds (lockspace: ``proven``).

The member record names the file as ``<path>#<device>:<inode>``: a path alone proves nothing, the file may have been
removed and made anew (systemd removes a unit's runtime directory) while an old worker still holds the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path

from snapd.errors import Refused


class LockFile:
    """Opened by the constructor, ``take``n when it is free; freed by the end of the last process that has it."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise Refused(f"lock file {path}: {error.strerror}") from error

    def take(self) -> bool:
        """Return whether it is ours now. False: an older process, or another daemon, still holds it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            found = Path(self.path).lstat()
        except OSError as error:
            raise Refused(f"lock file {self.path}: {error.strerror}") from error
        ours = os.fstat(self.fd)
        if (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino):
            raise Refused(f"lock file {self.path}: replaced by another file while it was waited for")
        with contextlib.suppress(OSError):  # for people only: a full disk is no reason not to serve
            os.truncate(self.fd, 0)
            os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        """Who wrote it last, for people."""
        text = os.pread(self.fd, 20, 0).decode("ascii", "replace").strip()
        return text if text.isdigit() else "unknown"

    @property
    def name(self) -> str:
        """What the member record says of it."""
        status = os.fstat(self.fd)
        return f"{self.path}#{status.st_dev}:{status.st_ino}"

    def proven(self, recorded: str) -> bool:
        """Whether every process that held the lock file ``recorded`` (of this machine, of this boot) has ended."""
        if recorded == self.name:
            return True
        match = re.fullmatch(r".*#(\d+):(\d+)", recorded, re.DOTALL | re.ASCII)
        return match is not None and not held_open(int(match[1]), int(match[2]))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def held_open(device: int, inode: int) -> bool:
    """Return whether some process of this user (of any user, for root) has that file open."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                descriptors = list((process / "fd").iterdir())
            except OSError:  # gone, or another user's: the old processes were ours
                continue
            for descriptor in descriptors:
                try:
                    status = descriptor.stat()
                except OSError:
                    continue
                if (status.st_dev, status.st_ino) == (device, inode):
                    return True
    return False
