"""``csnap doctor``: verdicts on devices, and what is looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapd.doctor import device_facts
from snapd.doctor.devices import DeviceFacts, Expected, Multipath, Queue, judge
from snapd.doctor.finding import Finding, Level, Subject, exit_code
from snapd.units import GIB, KIB, MIB

GOOD = DeviceFacts(
    "/dev/sda", "origin", block_device=True, size=GIB, identity="wwid:1", logical_block=512, direct=True,
    start=MIB, queue=Queue("write back", "mq-deadline", 30.0, 0, 4096),
    multipath=Multipath((("sda", "running"), ("sdb", "running"))),
)  # fmt: skip
RECORD = Expected(GIB, "wwid:1", 16 * KIB, 512)


def levels(facts: DeviceFacts, expected: Expected = RECORD) -> dict[str, Level]:
    return {finding.check: finding.level for finding in judge(facts, expected)}


def test_a_good_device_has_nothing_but_ok() -> None:
    """Every check is made."""
    found = levels(GOOD)
    assert set(found) == {
        "open", "size", "identity", "logical_block", "o_direct", "writable", "use", "alignment", "write_cache", "queue",
        "multipath",
    }  # fmt: skip
    assert set(found.values()) == {Level.OK}


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({"error": "No such file or directory"}, "open", Level.FAILED),
        ({"size": GIB + 512}, "size", Level.FAILED),
        ({"identity": "wwid:2"}, "identity", Level.FAILED),
        ({"logical_block": 4096}, "logical_block", Level.FAILED),
        ({"direct": False}, "o_direct", Level.WARNING),
        ({"read_error": "Input/output error"}, "o_direct", Level.FAILED),
        ({"writable": False}, "writable", Level.FAILED),
        ({"used_by": ("the mount /srv",)}, "use", Level.FAILED),
        ({"start": 63 * 512}, "alignment", Level.WARNING),
        ({"start": 4096}, "alignment", Level.NOTE),
        ({"queue": Queue("write back", "none", 30.0, 512, 4096)}, "alignment", Level.WARNING),
        ({"queue": Queue()}, "write_cache", Level.UNCHECKED),
        ({"queue": Queue()}, "queue", Level.UNCHECKED),
        ({"queue": Queue("write through", "none", 180.0)}, "queue", Level.NOTE),
        ({"queue": Queue("write through", "bfq", 30.0)}, "queue", Level.NOTE),
        ({"multipath": Multipath((("sda", "running"), ("sdb", "offline")))}, "multipath", Level.WARNING),
        ({"multipath": Multipath((("sda", "running"),))}, "multipath", Level.WARNING),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(change: dict[str, object], check: str, level: Level) -> None:
    """And what has failed or wants putting right says how."""
    facts = replace(GOOD, **change)  # type: ignore[arg-type]
    (finding,) = [finding for finding in judge(facts, RECORD) if finding.check == check]
    assert finding.level == level
    assert bool(finding.todo) or level in (Level.UNCHECKED, Level.NOTE)


def test_without_a_record_size_and_identity_are_not_checked() -> None:
    """etcd could not be asked."""
    found = levels(GOOD, Expected(None, None, 16 * KIB))
    assert (found["size"], found["identity"]) == (Level.UNCHECKED, Level.UNCHECKED)


def test_a_cow_device_is_not_measured_by_the_origins_record() -> None:
    """Only its block size is."""
    found = levels(replace(GOOD, role="COW of s1", size=7 * MIB))
    assert "size" not in found and "identity" not in found


def test_a_file_is_looked_at(tmp_path: Path) -> None:
    """Size, reads, and whether it may be written."""
    path = tmp_path / "origin"
    path.write_bytes(bytes(MIB))
    facts = device_facts.gather(str(path), "origin")
    assert (facts.size, facts.error, facts.read_error, facts.writable) == (MIB, "", "", True)
    path.chmod(0o444)
    assert not device_facts.gather(str(path), "origin").writable


def test_what_cannot_be_opened_is_a_failure_and_no_exception(tmp_path: Path) -> None:
    """Absent, a directory, too short."""
    (tmp_path / "short").write_bytes(b"x")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "short"):
        assert device_facts.gather(str(path), "origin").error


def test_only_failures_count_for_the_exit_code() -> None:
    """Warnings are for people to weigh."""
    about = Subject("devices", "/dev/sda")
    calm: list[Finding] = [about.ok("a", ""), about.note("b", ""), about.warning("c", "", ""), about.unchecked("d", "")]
    assert exit_code(calm) == 0
    assert exit_code([*calm, about.failed("e", "", "")]) == 1
