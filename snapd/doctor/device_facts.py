"""Looks at a device: opened read-only and not exclusively, its first block read; the rest from /sys and /proc."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from snapd.blockdev.device import open_device
from snapd.blockdev.sync import pread
from snapd.doctor.devices import DeviceFacts, Multipath, Queue
from snapd.errors import CsnapError
from snapd.units import SECTOR

BLOCKS = Path("/sys/dev/block")


def gather(path: str, role: str) -> DeviceFacts:
    try:
        device = open_device(path, exclusive=False, read_only=True)
    except CsnapError as error:
        return DeviceFacts(path, role, error=str(error).removeprefix(f"{path}: "))
    try:
        read_error = ""
        try:
            pread(device, 0, device.logical_block)
        except CsnapError as error:
            read_error = str(error)
        status = os.fstat(device.fd)
        block = stat.S_ISBLK(status.st_mode)
        folder = BLOCKS / name_of(status.st_rdev)
        return DeviceFacts(
            path=path,
            role=role,
            block_device=block,
            size=device.size,
            identity=device.identity,
            logical_block=device.logical_block,
            direct=device.direct,
            read_error=read_error,
            writable=_text(folder / "ro") != "1" if block else _writable(device.fd, status.st_mode),
            used_by=_users(status.st_rdev) if block else (),
            start=(_number(folder / "start") or 0) * SECTOR if block else 0,
            queue=_queue(folder) if block else None,
            multipath=_multipath(folder) if block else None,
        )
    finally:
        device.close()


def name_of(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _writable(fd: int, mode: int) -> bool:
    return bool(mode & 0o222) and not os.fstatvfs(fd).f_flag & os.ST_RDONLY


def _users(number: int) -> tuple[str, ...]:
    """Mounts and swap on the device or its partitions, and what device-mapper or RAID stacks on it."""
    folder = BLOCKS / name_of(number)
    names = {name_of(number)} | {_text(child) for child in folder.glob("*/dev")}
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        if fields[2] in names:
            mounts.append(f"the mount {fields[4]}")
    swaps = [f"swap ({path})" for path, device in swaps_in_use() if device in names]
    stacked = [f"{holder.name} ({_text(holder / 'dm' / 'name') or 'stacked on it'})" for holder in _holders(folder)]
    return (*mounts, *swaps, *stacked)


def _holders(folder: Path) -> list[Path]:
    return sorted([*folder.glob("holders/*"), *folder.glob("*/holders/*")])


def swaps_in_use() -> list[tuple[str, str]]:
    """Each swap's path, and the number of the device it lies on."""
    found = []
    for line in Path("/proc/swaps").read_text(errors="replace").splitlines()[1:]:
        path = line.split()[0].replace("\\040", " ")
        try:
            status = Path(path).stat()
        except OSError:
            continue
        found.append((path, name_of(status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev)))
    return found


def _queue(folder: Path) -> Queue:
    disk = folder.resolve().parent if (folder / "partition").exists() else folder
    scheduler = _text(disk / "queue" / "scheduler")
    chosen = scheduler.partition("[")[2].partition("]")[0] or scheduler
    timeout = _number(disk / "queue" / "io_timeout")
    return Queue(
        write_cache=_text(disk / "queue" / "write_cache"),
        scheduler=chosen,
        timeout=timeout / 1000 if timeout is not None else None,
        alignment_offset=max(0, _number(folder / "alignment_offset") or 0),
        physical_block=_number(disk / "queue" / "physical_block_size") or 0,
    )


def _multipath(folder: Path) -> Multipath | None:
    if not _text(folder / "dm" / "uuid").startswith("mpath-"):
        return None
    paths = sorted(folder.glob("slaves/*"))
    return Multipath(tuple((path.name, _text(path / "device" / "state")) for path in paths))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None
