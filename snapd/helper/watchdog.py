"""A watchdog device, by <linux/watchdog.h>: once armed, the host resets unless it is petted in time.

    WDIOC_GETSUPPORT   'W' 0, struct watchdog_info: options u32, firmware u32, identity char[32]
    WDIOC_SETTIMEOUT   'W' 6, int seconds, in and out: drivers round
    WDIOC_GETTIMEOUT   'W' 7, int seconds
    WDIOC_KEEPALIVE    'W' 5

Opening arms it. Closing disarms it only after a "V" was written, if the driver knows WDIOF_MAGICCLOSE; a driver that
does not know it disarms at any close, also that of a killed process: such a device is refused, unless it is
``nowayout``, which never disarms. A ``nowayout`` device resets the host after csnap was stopped, too, unless it is
opened again in time: that is said when it is armed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from errno import EBUSY, ENOTTY, EOPNOTSUPP
from pathlib import Path

from snapd.errors import Refused

INFO = struct.Struct("=II32s")
SECONDS = struct.Struct("=i")


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("W") << 8 | number


GETSUPPORT = _ioctl(2, 0, INFO.size)
KEEPALIVE = _ioctl(2, 5, SECONDS.size)
SETTIMEOUT = _ioctl(3, 6, SECONDS.size)
GETTIMEOUT = _ioctl(2, 7, SECONDS.size)

MAGICCLOSE = 0x0100


class System:
    """The system calls; a test has its own."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        fcntl.ioctl(fd, request, argument)

    def write(self, fd: int, data: bytes) -> None:
        os.write(fd, data)

    def close(self, fd: int) -> None:
        os.close(fd)

    def attribute(self, path: str, name: str) -> str:
        """What sysfs tells of the device, without opening it; empty if it does not."""
        try:
            number = os.stat(path).st_rdev  # noqa: PTH116  as raw as the rest
            named = Path(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")
            if not (named / name).exists():  # /dev/watchdog is the first one under its old number
                named = Path("/sys/class/watchdog/watchdog0")
            return (named / name).read_text().strip()
        except OSError:
            return ""


def is_armed(path: str, system: System) -> bool:
    """Whether it counts down, though nobody has it open: a killed process left it so, and that may be needed."""
    return system.attribute(path, "state") == "active"


class Watchdog:
    """Armed by the constructor. Raises Refused for a device that cannot keep the promise."""

    def __init__(self, path: str, timeout: int, system: System | None = None) -> None:
        self._path = path
        self._system = system or System()
        try:
            self._fd = self._system.open(path)
        except OSError as error:
            busy = ": something else has it (systemd's RuntimeWatchdogSec, another volume): name another device"
            raise Refused(f"{path}: {error.strerror}{busy if error.errno == EBUSY else ''}") from None
        try:
            options, _, identity = INFO.unpack(self._call(GETSUPPORT, INFO.size))
            self.identity = identity.split(b"\0")[0].decode("ascii", "replace")
            self.nowayout = self._system.attribute(path, "nowayout") == "1"
            if not (options & MAGICCLOSE or self.nowayout):
                raise Refused(f"{path} ({self.identity}): disarms when its process is killed: it cannot fence")
            self.timeout = self._set(timeout)
        except BaseException:
            self._system.write(self._fd, b"V")
            self._system.close(self._fd)
            raise

    def _set(self, timeout: int) -> int:
        with contextlib.suppress(Refused):  # fixed by the hardware: read below
            self._call(SETTIMEOUT, SECONDS.size, SECONDS.pack(timeout))
        (found,) = SECONDS.unpack(self._call(GETTIMEOUT, SECONDS.size))
        if not 0 < found <= timeout:
            raise Refused(f"{self._path} ({self.identity}): its timeout is {found} s, configured are {timeout} s")
        return int(found)

    def _call(self, request: int, size: int, data: bytes = b"") -> bytes:
        argument = bytearray(data.ljust(size, b"\0"))
        try:
            self._system.ioctl(self._fd, request, argument)
        except OSError as error:
            what = "not a watchdog" if error.errno in (ENOTTY, EOPNOTSUPP) else error.strerror
            raise Refused(f"{self._path}: {what}") from None
        return bytes(argument)

    def pet(self) -> None:
        """From now on the host has ``timeout`` seconds."""
        self._call(KEEPALIVE, SECONDS.size)

    def disarm(self) -> bool:
        """Close it in order. Return whether it is disarmed: a ``nowayout`` device is not."""
        self._system.write(self._fd, b"V")
        self._system.close(self._fd)
        return not self.nowayout
