"""Verdicts on csnapd@<volume>.service as systemd has it loaded: the unit that csnap brings, with drop-ins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from snapd.doctor.finding import Finding, Subject

AREA = "unit"

HARDENED: Mapping[str, str] = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "RestrictNamespaces": "yes",
    "MemoryDenyWriteExecute": "yes",
    "DevicePolicy": "closed",
}
"""What systemctl show says of the unit that csnap brings: a drop-in that undoes it should be known. RestrictNamespaces
is shown as the list of those allowed; empty is "yes"."""

SHOWN = (
    "LoadState", "ActiveState", "SubState", "UnitFileState", "NRestarts", "Result", "WatchdogUSec", "MemoryMax",
    "LimitMEMLOCK", "OOMScoreAdjust", "DropInPaths", "User", "Type", "KillMode", "RuntimeDirectoryPreserve",
    *(name for name in HARDENED),
)  # fmt: skip
RESTARTS_MOST = 3


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """``error``: why systemd was not asked. ``values``: properties as ``systemctl show`` prints them."""

    name: str
    error: str
    values: Mapping[str, str]
    lease_ttl: int  # seconds

    def value(self, name: str) -> str:
        return self.values.get(name, "")


def judge(facts: UnitFacts) -> Iterator[Finding]:
    about = Subject(AREA, facts.name)
    if facts.error:
        yield about.unchecked("unit", facts.error)
        return
    if facts.value("LoadState") != "loaded":
        state = facts.value("LoadState") or "unknown"
        yield about.warning(
            "unit", f"not installed ({state})", "docs/install.md, Units: csnap started by hand ends with you"
        )
        return
    yield running(about, facts)
    yield enabled(about, facts)
    yield restarts(about, facts)
    yield watchdog(about, facts)
    yield memory(about, facts)
    yield hardening(about, facts)


def judge_helper(facts: UnitFacts) -> Iterator[Finding]:
    """csnap-helper@<volume>.service, for the fencing methods that need it; csnapd@ starts it if it is enabled."""
    about = Subject(AREA, facts.name)
    if facts.error:
        yield about.unchecked("unit", facts.error)
    elif facts.value("LoadState") != "loaded" or facts.value("ActiveState") != "active":
        yield about.failed(
            "unit",
            f"{facts.value('LoadState')}, {facts.value('ActiveState')}: fencing needs it",
            f"systemctl enable --now {facts.name}",
        )
    else:
        yield running(about, facts)
        yield enabled(about, facts)


def running(about: Subject, facts: UnitFacts) -> Finding:
    state = f"{facts.value('ActiveState')} ({facts.value('SubState')})"
    if facts.value("ActiveState") == "active":
        return about.ok("unit", state)
    if facts.value("ActiveState") in ("activating", "reloading"):
        return about.note("unit", state, "csnap status says what it waits for")
    return about.failed(
        "unit", f"{state}, result {facts.value('Result')}", f"journalctl -u {facts.name}; systemctl start"
    )


def enabled(about: Subject, facts: UnitFacts) -> Finding:
    state = facts.value("UnitFileState")
    if state.startswith("enabled"):
        return about.ok("enabled", state)
    return about.warning(
        "enabled", f"{state or 'not enabled'}: it does not start at boot", f"systemctl enable {facts.name}"
    )


def restarts(about: Subject, facts: UnitFacts) -> Finding:
    count = int(facts.value("NRestarts")) if facts.value("NRestarts").isdigit() else 0
    if count > RESTARTS_MOST:
        return about.warning("restarts", f"restarted {count} times", f"journalctl -u {facts.name}: the reason is there")
    return about.ok("restarts", f"{count}")


def watchdog(about: Subject, facts: UnitFacts) -> Finding:
    """A stuck control process must end while its lease still lives; systemd shows spans like 8s or 1min 30s."""
    seconds = span(facts.value("WatchdogUSec"))
    if seconds is None:
        return about.unchecked("watchdog", f"WatchdogUSec={facts.value('WatchdogUSec')!r}: not understood")
    if not seconds:
        return about.warning("watchdog", "none: a daemon that hangs is not restarted", "WatchdogSec= below lease_ttl")
    if seconds >= facts.lease_ttl:
        return about.warning(
            "watchdog",
            f"{seconds:g} s, lease_ttl is {facts.lease_ttl} s: a stuck daemon is noticed after its lease has ended",
            "WatchdogSec= below lease_ttl, in a drop-in",
        )
    return about.ok("watchdog", f"{seconds:g} s, below lease_ttl of {facts.lease_ttl} s")


def memory(about: Subject, facts: UnitFacts) -> Finding:
    if facts.value("MemoryMax") not in ("infinity", ""):
        return about.warning(
            "memory",
            f"MemoryMax={facts.value('MemoryMax')}: it is in the path of block I/O and must not wait for memory",
            "take it out of the drop-in",
        )
    if facts.value("LimitMEMLOCK") not in ("infinity", ""):
        return about.warning("memory", f"LimitMEMLOCK={facts.value('LimitMEMLOCK')}", "LimitMEMLOCK=infinity")
    return about.ok("memory", "unlimited, may be locked")


def hardening(about: Subject, facts: UnitFacts) -> Finding:
    undone = []
    for name, expected in HARDENED.items():
        found = facts.value(name)
        if name == "RestrictNamespaces":
            found = "yes" if found in ("", "yes") else found
        if found != expected:
            undone.append(f"{name}={found or 'no'} (not {expected})")
    if facts.value("User") in ("", "root"):
        undone.append("User=root")
    if undone:
        return about.warning(
            "hardening", ", ".join(undone), f"look at {facts.value('DropInPaths') or 'the unit file'}: is it meant?"
        )
    dropins = facts.value("DropInPaths")
    return about.ok("hardening", "as csnap brings it" + (f", with {dropins}" if dropins else ""))


def span(text: str) -> float | None:
    """Parse a time span of systemctl show; None: not understood; 0 or infinity: none."""
    if text in ("", "0", "infinity"):
        return 0.0
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
    total = 0.0
    for word in text.split():
        number = word.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = word[len(number) :]
        try:
            total += float(number) * units[unit]
        except (ValueError, KeyError):
            return None
    return total
