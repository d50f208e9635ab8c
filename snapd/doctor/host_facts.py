"""Looks at this host: /proc, /sys and one call of adjtimex that sets nothing."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from snapd.doctor.device_facts import BLOCKS, name_of, swaps_in_use
from snapd.doctor.host import UNLIMITED, ClockFacts, HostFacts, LimitFacts, WatchdogFacts

TIMEX_BYTES = 256
TIMEX = struct.Struct("=I4xqqqqi")  # modes, offset, freq, maxerror, esterror (us), status
UNSYNCHRONIZED, TIME_ERROR = 0x40, 5

KEPT_AWAY = (("/", "the root file system"), ("/var/log", "/var/log"), ("/var/lib/etcd", "etcd's data"))

_libc = ctypes.CDLL(None, use_errno=True)


def gather(devices: Iterable[str], daemon: int) -> HostFacts:
    """``devices``: paths of the devices that csnap uses or makes; ``daemon``: its pid, 0 if none runs."""
    return HostFacts(
        clock=_clock(),
        limits=_limits(daemon),
        aio_free=_aio_free(),
        on_csnap=_on_csnap(devices),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def daemon_pid(admin: str) -> int:
    """The process that listens on the admin socket, as the kernel has it; 0: nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(admin)
            pid, _, _ = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return 0
    return int(pid)


def _clock() -> ClockFacts | None:
    buffer = ctypes.create_string_buffer(TIMEX_BYTES)
    state = _libc.adjtimex(buffer)
    if state < 0:
        return None
    _, _, _, most, _, status = TIMEX.unpack_from(buffer, 0)
    return ClockFacts(state != TIME_ERROR and not status & UNSYNCHRONIZED, most / 1e6)


def _limits(pid: int) -> LimitFacts | None:
    if not pid:
        files, memory = (
            _soft(resource.getrlimit(what)[0]) for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK)
        )
        return LimitFacts(True, files, memory)
    try:
        return parse_limits(Path(f"/proc/{_worker(pid)}/limits").read_text())
    except OSError:
        return None


def parse_limits(text: str) -> LimitFacts | None:
    """/proc/<pid>/limits: name, soft, hard, unit in columns."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        for name in ("Max open files", "Max locked memory"):
            if line.startswith(name):
                soft = line[len(name) :].split()[0]
                found[name] = UNLIMITED if soft == "unlimited" else int(soft)
    if len(found) != 2:
        return None
    return LimitFacts(False, found["Max open files"], found["Max locked memory"])


def _worker(pid: int) -> int:
    """The worker of a daemon: the memory that must not be swapped out is its."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if b"snapd.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        except OSError:
            continue
    return pid


def _soft(value: int) -> int:
    return UNLIMITED if value == resource.RLIM_INFINITY else value


def _aio_free() -> int | None:
    try:
        most, used = (int(Path(f"/proc/sys/fs/{name}").read_text()) for name in ("aio-max-nr", "aio-nr"))
    except OSError:
        return None
    return most - used


def _on_csnap(devices: Iterable[str]) -> tuple[str, ...]:
    ours: dict[str, str] = {}
    for path in devices:
        try:
            status = Path(path).stat()
        except OSError:
            continue
        if stat.S_ISBLK(status.st_mode):
            ours[name_of(status.st_rdev)] = path
    found = []
    for path, what in KEPT_AWAY:
        try:
            number = name_of(Path(path).stat().st_dev)
        except OSError:
            continue
        found += [f"{what} on {ours[name]}" for name in sorted(below(number)) if name in ours]
    for path, number in swaps_in_use():
        found += [f"swap ({path}) on {ours[name]}" for name in sorted(below(number)) if name in ours]
    return tuple(found)


def below(number: str, blocks: Path = BLOCKS) -> set[str]:
    """The device, the disk that it is a partition of, and whatever device-mapper, RAID or LVM has put it on."""
    found, todo = set(), [number]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        folder = blocks / name
        numbers = [slave / "dev" for slave in folder.glob("slaves/*")]
        if (folder / "partition").exists():
            numbers.append(folder.resolve().parent / "dev")
        todo += [path.read_text().strip() for path in numbers if path.exists()]
    return found


def watchdog(device: str) -> WatchdogFacts:
    """From /sys: opening a watchdog would arm it."""
    try:
        status = Path(device).stat()
    except OSError as error:
        return WatchdogFacts(device, error=f"{error.strerror}")
    if not stat.S_ISCHR(status.st_mode):
        return WatchdogFacts(device, error="no character device")
    number = name_of(status.st_rdev)
    folder = Path("/sys/dev/char") / number
    if not (folder / "identity").exists() and os.major(status.st_rdev) == 10:
        folder = Path("/sys/class/watchdog/watchdog0")  # /dev/watchdog is the first one's old name

    def value(name: str) -> str:
        try:
            return (folder / name).read_text().strip()
        except OSError:
            return ""

    timeout = value("timeout")
    return WatchdogFacts(
        device,
        "",
        value("identity"),
        int(timeout) if timeout.isdigit() else None,
        value("nowayout") == "1",
        value("state"),
    )
