"""Verdicts on origin and COW devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from snapd.doctor.finding import Finding, Subject
from snapd.units import format_size

AREA = "devices"
ORIGIN = "origin"

REQUEST_TIMEOUT_NOTE = 60.0
"""Seconds after which the kernel gives up a command: longer, and a path that is gone holds I/O up for that long."""


@dataclass(frozen=True, slots=True)
class Multipath:
    """A multipath map. ``paths``: each one's name and the kernel's state of its disk ("running", "offline", ...)."""

    paths: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Queue:
    """From /sys/block/<disk>/queue; empty or None where it is not told."""

    write_cache: str = ""
    scheduler: str = ""
    timeout: float | None = None  # seconds
    alignment_offset: int = 0
    physical_block: int = 0


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """``error``: why it cannot be opened. ``read_error``: why the first blocks cannot be read, with O_DIRECT if it is
    taken. ``used_by``: mounts, swap, LVM, RAID, as far as they are not csnap itself."""

    path: str
    role: str
    error: str = ""
    block_device: bool = False
    size: int = 0
    identity: str = ""
    logical_block: int = 0
    direct: bool = False
    read_error: str = ""
    writable: bool = True
    used_by: tuple[str, ...] = ()
    start: int = 0  # of a partition, bytes
    queue: Queue | None = None
    multipath: Multipath | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What etcd has on record of the origin; None: not known (yet)."""

    size: int | None
    identity: str | None
    chunk: int
    origin_block: int = 0


def judge(facts: DeviceFacts, expected: Expected) -> Iterator[Finding]:
    about = Subject(AREA, f"{facts.path} ({facts.role})")
    if facts.error:
        yield about.failed("open", facts.error, "attach the device, or put the path right in the configuration")
        return
    yield about.ok("open", f"{format_size(facts.size)}, {facts.identity or 'no identity'}")
    if facts.role == ORIGIN:
        yield size(about, facts, expected)
        yield identity(about, facts, expected)
    yield block(about, facts, expected)
    yield direct(about, facts)
    yield writable(about, facts)
    yield use(about, facts)
    yield alignment(about, facts, expected)
    if facts.queue is not None:
        yield write_cache(about, facts.queue)
        yield timeout(about, facts.queue)
    if facts.multipath is not None:
        yield multipath(about, facts.multipath)


def size(about: Subject, facts: DeviceFacts, expected: Expected) -> Finding:
    if expected.size is None:
        return about.unchecked("size", "etcd's record of the volume is not known")
    if facts.size != expected.size:
        return about.failed(
            "size",
            f"{facts.size} bytes, {expected.size} on record",
            "it is another device, or was resized: csnap serves it at the size of csnap volume init only",
        )
    return about.ok("size", "as on record")


def identity(about: Subject, facts: DeviceFacts, expected: Expected) -> Finding:
    if expected.identity is None:
        return about.unchecked("identity", "etcd's record of the volume is not known")
    if facts.identity != expected.identity:
        return about.failed(
            "identity",
            f"{facts.identity}, {expected.identity} on record",
            "it is another device: compare /dev/disk/by-id on all hosts",
        )
    return about.ok("identity", "as on record")


def block(about: Subject, facts: DeviceFacts, expected: Expected) -> Finding:
    if expected.origin_block and facts.logical_block > expected.origin_block:
        return about.failed(
            "logical_block",
            f"{facts.logical_block} bytes, the origin has {expected.origin_block}",
            "use a COW device whose logical blocks are not larger than the origin's",
        )
    return about.ok("logical_block", f"{facts.logical_block} bytes")


def direct(about: Subject, facts: DeviceFacts) -> Finding:
    if facts.read_error:
        return about.failed("o_direct", facts.read_error, "look at the kernel's log: the device does not read")
    if not facts.direct:
        return about.warning(
            "o_direct",
            "its file system refuses O_DIRECT: the page cache is used, and two hosts would not see each other's writes",
            "use block devices; files on such a file system are for tests",
        )
    return about.ok("o_direct", "reads with O_DIRECT")


def writable(about: Subject, facts: DeviceFacts) -> Finding:
    if not facts.writable:
        return about.failed(
            "writable", "read-only", "blockdev --setrw, or at the array; a fenced or mapped-read-only LUN looks so too"
        )
    return about.ok("writable", "not read-only")


def use(about: Subject, facts: DeviceFacts) -> Finding:
    if facts.used_by:
        return about.failed(
            "use",
            f"also used by {', '.join(facts.used_by)}",
            "unmount it here: what goes past csnap changes the snapshots, and nothing can notice",
        )
    return about.ok("use", "not mounted, not swap, nothing stacked on it")


def alignment(about: Subject, facts: DeviceFacts, expected: Expected) -> Finding:
    offset = facts.queue.alignment_offset if facts.queue is not None else 0
    physical = facts.queue.physical_block if facts.queue is not None else 0
    if offset or (physical and facts.start % physical):
        return about.warning(
            "alignment",
            f"begins {offset or facts.start % physical} bytes off a physical block: every write reads first",
            "make the partition or volume anew at a multiple of 1 MiB",
        )
    if facts.start % expected.chunk:
        return about.note("alignment", f"the partition begins at {facts.start}, no multiple of a chunk")
    return about.ok("alignment", "aligned")


def write_cache(about: Subject, queue: Queue) -> Finding:
    if not queue.write_cache:
        return about.unchecked("write_cache", "the kernel does not say")
    if queue.write_cache == "write back":
        return about.ok("write_cache", "volatile; csnap flushes, and the device has to obey")
    return about.ok("write_cache", queue.write_cache)


def timeout(about: Subject, queue: Queue) -> Finding:
    if queue.timeout is None:
        return about.unchecked("queue", "the kernel does not say how long it waits for a command")
    shown = f"a command may take {queue.timeout:g} s, scheduler {queue.scheduler or 'unknown'}"
    if queue.timeout > REQUEST_TIMEOUT_NOTE:
        return about.note("queue", shown, "a path that is gone holds I/O up for so long; queue/io_timeout shortens it")
    if queue.scheduler == "bfq":
        return about.note("queue", shown, "bfq makes writers wait for each other: mq-deadline or none")
    return about.ok("queue", shown)


def multipath(about: Subject, found: Multipath) -> Finding:
    bad = [f"{name} {state}" for name, state in found.paths if state not in ("running", "live", "")]
    if bad:
        return about.warning(
            "multipath", f"{len(bad)} of {len(found.paths)} paths: {', '.join(bad)}", "multipath -ll; mend the path"
        )
    if len(found.paths) < 2:
        return about.warning("multipath", "one path: its end is the end of I/O", "multipath -ll; add a second path")
    return about.ok("multipath", f"{len(found.paths)} paths, all running")
