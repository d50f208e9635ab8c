"""Verdicts on this host: its clock, limits, watchdog, and what must not lie on a device that csnap serves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from snapd.doctor.finding import Finding, Subject

AREA = "host"

CLOCK_ERROR_MOST = 1.0
"""Seconds that the kernel believes its clock may be off."""

FILES_LEAST = 1024
"""Open files: a descriptor for each client, device and etcd stream, and room."""

AIO_LEAST = 1024
"""Events: what one worker asks io_setup for, and room for a restart beside the old one."""

UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """From adjtimex: whether something disciplines the clock, and the error it admits (seconds)."""

    synchronized: bool
    error: float


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """Of the daemon's process, or of this one if ``ours``. UNLIMITED: no limit."""

    ours: bool
    files: int
    locked_memory: int


@dataclass(frozen=True, slots=True)
class WatchdogFacts:
    """``state`` as sysfs has it: active, inactive; empty: not told."""

    device: str
    error: str = ""
    identity: str = ""
    timeout: int | None = None
    nowayout: bool = False
    state: str = ""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """None: could not be found out. ``aio_free``: events left of aio-max-nr. ``on_csnap``: what lies on a csnap device
    and must not, e.g. "swap on /dev/nbd0"."""

    clock: ClockFacts | None
    limits: LimitFacts | None
    aio_free: int | None
    on_csnap: tuple[str, ...]
    kernel: str
    python: str


def judge(facts: HostFacts) -> Iterator[Finding]:
    about = Subject(AREA)
    yield clock(about, facts.clock)
    yield files(about, facts.limits)
    yield memory(about, facts.limits)
    yield aio(about, facts.aio_free)
    yield stacking(about, facts.on_csnap)
    yield kernel(about, facts.kernel, facts.python)


def clock(about: Subject, facts: ClockFacts | None) -> Finding:
    if facts is None:
        return about.unchecked("clock_sync", "the kernel does not say")
    if not facts.synchronized:
        return about.warning(
            "clock_sync",
            "nothing keeps this host's clock",
            "install chrony or enable systemd-timesyncd; leases do not need it, certificates and logs do",
        )
    if facts.error > CLOCK_ERROR_MOST:
        return about.note("clock_sync", f"kept, but may be {facts.error:.1f} s off", "chronyc tracking")
    return about.ok("clock_sync", f"kept, at most {facts.error * 1000:.0f} ms off")


def files(about: Subject, facts: LimitFacts | None) -> Finding:
    if facts is None:
        return about.unchecked("nofile", "the daemon's limits cannot be read")
    shown = _limit(facts.files) + _whose(facts)
    if facts.files != UNLIMITED and facts.files < FILES_LEAST:
        return about.warning("nofile", f"{shown}, expected {FILES_LEAST}", "LimitNOFILE= in a drop-in of the unit")
    return about.ok("nofile", shown)


def memory(about: Subject, facts: LimitFacts | None) -> Finding:
    if facts is None:
        return about.unchecked("memlock", "the daemon's limits cannot be read")
    if facts.locked_memory != UNLIMITED:
        shown = f"{facts.locked_memory} bytes{_whose(facts)}, expected no limit"
        todo = "LimitMEMLOCK=infinity, as in the unit that csnap brings"
        return about.note("memlock", shown, todo) if facts.ours else about.warning("memlock", shown, todo)
    return about.ok("memlock", f"no limit{_whose(facts)}")


def aio(about: Subject, free: int | None) -> Finding:
    if free is None:
        return about.unchecked("aio", "/proc/sys/fs/aio-max-nr cannot be read")
    if free < AIO_LEAST:
        return about.warning(
            "aio", f"{free} events are left, expected {AIO_LEAST}", "sysctl fs.aio-max-nr=1048576, and in /etc/sysctl.d"
        )
    return about.ok("aio", f"{free} events are left")


def stacking(about: Subject, found: tuple[str, ...]) -> Finding:
    if found:
        return about.failed(
            "stacking",
            "; ".join(found),
            "move it elsewhere: csnap would wait for itself when memory is short, or for its own etcd",
        )
    return about.ok("stacking", "no swap, no root, no /var/log and no etcd data on a device of csnap")


def kernel(about: Subject, release: str, python: str) -> Finding:
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers and numbers < (5, 6):
        return about.warning("kernel", f"{release}: no PR_SET_IO_FLUSHER", "use Linux 5.6 or newer (Debian 12: 6.1)")
    return about.ok("kernel", f"Linux {release}, Python {python}")


def watchdog(facts: WatchdogFacts, wanted: int, pets: bool | None) -> Iterator[Finding]:
    """``wanted``: the configured timeout; ``pets``: whether the daemon holds it now, None if nobody can say."""
    about = Subject(AREA, facts.device)
    if facts.error:
        yield about.failed("watchdog", facts.error, "load its driver (softdog, for want of hardware), or name another")
        return
    shown = f"{facts.identity or 'unknown make'}, {facts.timeout or 'unknown'} s" + (
        ", nowayout" if facts.nowayout else ""
    )
    if pets is False and facts.state == "active":
        yield about.failed(
            "watchdog", f"{shown}: counts down and csnap does not pet it", "start csnap: this host resets"
        )
    elif facts.timeout is not None and facts.timeout > wanted and facts.state == "active":
        yield about.warning("watchdog", f"{shown}; {wanted} s are configured", "others wait too short: restart csnap")
    elif "soft" in facts.identity.lower():
        yield about.note("watchdog", f"{shown}: software", "it resets nothing when the kernel hangs: use hardware")
    else:
        yield about.ok("watchdog", shown)


def _limit(value: int) -> str:
    return "no limit" if value == UNLIMITED else str(value)


def _whose(facts: LimitFacts) -> str:
    return " (of this command: no daemon runs)" if facts.ours else ""
