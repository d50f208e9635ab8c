"""``csnap doctor``: verdicts on the host and on the unit as systemd has it loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from snapd.doctor import host_facts, unit_facts
from snapd.doctor.finding import Finding, Level
from snapd.doctor.host import UNLIMITED, ClockFacts, HostFacts, LimitFacts, WatchdogFacts, judge, watchdog
from snapd.doctor.unit import UnitFacts, judge_helper, span
from snapd.doctor.unit import judge as judge_unit

GOOD = HostFacts(ClockFacts(True, 0.01), LimitFacts(False, 524288, UNLIMITED), 60000, (), "6.1.0-18-amd64", "3.11.2")


def level(facts: HostFacts, check: str) -> Level:
    (finding,) = [finding for finding in judge(facts) if finding.check == check]
    return finding.level


def test_a_good_host_has_nothing_but_ok() -> None:
    """Every check is made."""
    findings = list(judge(GOOD))
    assert {finding.level for finding in findings} == {Level.OK}
    assert [finding.check for finding in findings] == ["clock_sync", "nofile", "memlock", "aio", "stacking", "kernel"]


@pytest.mark.parametrize(
    ("change", "check", "expected"),
    [
        ({"clock": ClockFacts(False, 0.0)}, "clock_sync", Level.WARNING),
        ({"clock": ClockFacts(True, 8.0)}, "clock_sync", Level.NOTE),
        ({"clock": None}, "clock_sync", Level.UNCHECKED),
        ({"limits": LimitFacts(False, 256, UNLIMITED)}, "nofile", Level.WARNING),
        ({"limits": LimitFacts(False, UNLIMITED, 65536)}, "memlock", Level.WARNING),
        ({"limits": LimitFacts(True, UNLIMITED, 65536)}, "memlock", Level.NOTE),
        ({"limits": None}, "memlock", Level.UNCHECKED),
        ({"limits": None}, "nofile", Level.UNCHECKED),
        ({"aio_free": 100}, "aio", Level.WARNING),
        ({"aio_free": None}, "aio", Level.UNCHECKED),
        ({"on_csnap": ("swap (/dev/nbd0) on /dev/nbd0",)}, "stacking", Level.FAILED),
        ({"kernel": "5.4.0"}, "kernel", Level.WARNING),
    ],
)
def test_a_host_that_is_not_well(change: dict[str, object], check: str, expected: Level) -> None:
    """What the daemon would suffer from."""
    assert level(replace(GOOD, **change), check) == expected  # type: ignore[arg-type]


HARDWARE = WatchdogFacts("/dev/watchdog", "", "iTCO_wdt", 15, False, "active")


@pytest.mark.parametrize(
    ("facts", "pets", "expected"),
    [
        (HARDWARE, True, Level.OK),
        (HARDWARE, None, Level.OK),
        (HARDWARE, False, Level.FAILED),
        (replace(HARDWARE, state="inactive"), False, Level.OK),
        (replace(HARDWARE, timeout=60), True, Level.WARNING),
        (replace(HARDWARE, identity="Software Watchdog"), True, Level.NOTE),
        (replace(HARDWARE, error="No such file or directory"), None, Level.FAILED),
    ],
)
def test_watchdogs(facts: WatchdogFacts, pets: bool | None, expected: Level) -> None:
    """One that counts down with nobody petting it will reset this host."""
    (finding,) = watchdog(facts, 15, pets)
    assert finding.level == expected


def test_this_host_can_be_looked_at() -> None:
    """Whatever it is: no exception, and limits of this process if no daemon runs."""
    facts = host_facts.gather(["/absent", "/dev/null"], 0)
    assert facts.limits is not None and facts.limits.ours
    assert facts.clock is not None and facts.clock.error >= 0
    assert facts.aio_free is not None and facts.kernel
    assert host_facts.gather([], os.getpid()).limits == host_facts.parse_limits(Path("/proc/self/limits").read_text())
    assert host_facts.gather([], 2**22 + 1).limits is None


def test_nobody_listens_and_nobody_has_a_pid(tmp_path: Path) -> None:
    """A dead socket's file, or none."""
    assert host_facts.daemon_pid(str(tmp_path / "admin.sock")) == 0


def test_stacked_devices_are_followed_down(tmp_path: Path) -> None:
    """A logical volume on a partition of a disk: all three count; circles end."""
    for number in ("253:0", "8:1"):
        (tmp_path / number / "slaves").mkdir(parents=True)
        (tmp_path / number / "dev").write_text(number)
    (tmp_path / "disk" / "part").mkdir(parents=True)
    (tmp_path / "disk" / "dev").write_text("8:0\n")
    (tmp_path / "8:2").symlink_to(tmp_path / "disk" / "part")
    (tmp_path / "disk" / "part" / "partition").write_text("2")
    (tmp_path / "disk" / "part" / "dev").write_text("8:2\n")
    (tmp_path / "253:0" / "slaves" / "sda2").symlink_to(tmp_path / "disk" / "part")
    assert host_facts.below("253:0", tmp_path) == {"253:0", "8:2", "8:0"}
    assert host_facts.below("0:42", tmp_path) == {"0:42"}


def test_what_is_no_watchdog_is_said(tmp_path: Path) -> None:
    """Absent, or a file; looked at without opening it."""
    (tmp_path / "file").write_text("")
    assert host_facts.watchdog(str(tmp_path / "absent")).error
    assert host_facts.watchdog(str(tmp_path / "file")).error == "no character device"
    assert host_facts.watchdog("/dev/null").error == ""


UNIT = unit_facts.parse(
    """LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
NRestarts=0
Result=success
WatchdogUSec=8s
MemoryMax=infinity
LimitMEMLOCK=infinity
DropInPaths=/etc/systemd/system/csnapd@vol.service.d/addresses.conf
User=csnap
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
MemoryDenyWriteExecute=yes
DevicePolicy=closed
"""
)


def unit(**changes: str) -> list[Finding]:
    return list(judge_unit(UnitFacts("csnapd@vol.service", "", {**UNIT, **changes}, 10)))


def test_the_unit_as_csnap_brings_it_has_nothing_but_ok() -> None:
    """A drop-in that undoes nothing is named, no more."""
    findings = unit()
    assert {finding.level for finding in findings} == {Level.OK}
    assert "addresses.conf" in findings[-1].text


@pytest.mark.parametrize(
    ("changes", "check", "expected"),
    [
        ({"LoadState": "not-found"}, "unit", Level.WARNING),
        ({"ActiveState": "failed", "Result": "watchdog"}, "unit", Level.FAILED),
        ({"ActiveState": "inactive"}, "unit", Level.FAILED),
        ({"ActiveState": "activating"}, "unit", Level.NOTE),
        ({"UnitFileState": "disabled"}, "enabled", Level.WARNING),
        ({"NRestarts": "9"}, "restarts", Level.WARNING),
        ({"WatchdogUSec": "0"}, "watchdog", Level.WARNING),
        ({"WatchdogUSec": "1min 30s"}, "watchdog", Level.WARNING),
        ({"WatchdogUSec": "soon"}, "watchdog", Level.UNCHECKED),
        ({"MemoryMax": "536870912"}, "memory", Level.WARNING),
        ({"LimitMEMLOCK": "8388608"}, "memory", Level.WARNING),
        ({"ProtectSystem": "no"}, "hardening", Level.WARNING),
        ({"User": ""}, "hardening", Level.WARNING),
        ({"RestrictNamespaces": "cgroup ipc net"}, "hardening", Level.WARNING),
    ],
)
def test_a_unit_that_was_changed(changes: dict[str, str], check: str, expected: Level) -> None:
    """Also by a drop-in that takes protection away."""
    (finding,) = [finding for finding in unit(**changes) if finding.check == check]
    assert finding.level == expected


def test_without_systemd_the_unit_is_not_checked() -> None:
    """Said once."""
    (finding,) = judge_unit(UnitFacts("csnapd@vol.service", "systemd does not run here", {}, 10))
    assert finding.level == Level.UNCHECKED


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Level.OK),
        ({"ActiveState": "inactive"}, Level.FAILED),
        ({"LoadState": "not-found"}, Level.FAILED),
        ({"UnitFileState": "disabled"}, Level.WARNING),
    ],
)
def test_the_helpers_unit(changes: dict[str, str], expected: Level) -> None:
    """Needed by the methods that ask for it: without it nobody is fenced."""
    findings = list(judge_helper(UnitFacts("csnap-helper@vol.service", "", {**UNIT, **changes}, 10)))
    assert max((finding.level for finding in findings), key=list(Level).index) == expected


def test_spans_of_systemctl() -> None:
    """As it shows them."""
    assert [span(text) for text in ("8s", "1min 30s", "infinity", "0", "", "500ms", "x", "8parsec")] == [
        8, 90, 0, 0, 0, 0.5, None, None,
    ]  # fmt: skip
