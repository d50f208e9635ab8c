"""``csnap doctor``: verdicts on what the daemon says, the report, and the bundle."""

from __future__ import annotations

import json
import tarfile
import tomllib
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest

from snapd import __version__
from snapd.cli import doctoring
from snapd.cli.main import main
from snapd.doctor import bundle, examine
from snapd.doctor.daemon import CheckFacts, DaemonFacts, Registration, checked, judge, registration
from snapd.doctor.finding import Finding, Level, Subject
from snapd.errors import CsnapError
from tests.support.top_scenes import answer, host, wait
from tests.unit.test_config import GOOD

SNAPSHOT = {"name": "s1", "state": "active", "percent_full": 12.0}


def told(**changes: Any) -> dict[str, Any]:
    """An answer of ``observe``; ``snapshots`` and ``version`` go into its status."""
    snapshots = changes.pop("snapshots", [SNAPSHOT])
    version = changes.pop("version", "0.1.0")
    fencing = changes.pop("method", "scsi-pr")
    protocol = changes.pop("protocol", {"in_force": 1, "newest": 2, "spoken_by_all": 1})
    changes.setdefault("members", [{**host("host-a"), "version": "0.1.0"}, {**host("host-b"), "version": "0.1.0"}])
    worker = {"heartbeat_age_seconds": 0.1, **changes.pop("worker", {})}
    value = answer(100.0, worker=worker, **changes)
    value["status"]["snapshots"], value["status"]["version"] = snapshots, version
    value["status"]["fencing"]["method"] = fencing
    value["status"]["protocol"] = protocol
    return value


def found(value: dict[str, Any] | None, check: str, area: str = "daemon", about: str | None = None) -> Finding:
    findings = [
        finding
        for finding in judge(DaemonFacts(value, "nobody listens", "0.1.0", "0123"))
        if (finding.area, finding.check) == (area, check) and about in (None, finding.about)
    ]
    return findings[0]


def test_a_good_daemon_has_nothing_but_ok() -> None:
    """Itself, its members, snapshots, locks and fencing."""
    findings = list(judge(DaemonFacts(told(), "", "0.1.0", "0123")))
    assert {finding.level for finding in findings} == {Level.OK}
    assert {finding.area for finding in findings} == {"daemon", "members", "snapshots", "locks", "fencing"}


def test_without_a_daemon_it_says_what_was_not_checked() -> None:
    """That none answers is a failure; members, snapshots, locks and fencing are not known."""
    findings = list(judge(DaemonFacts(None, "nobody listens", "0.1.0", "0123")))
    assert [(finding.area, finding.level) for finding in findings[1:]] == [
        ("daemon", Level.FAILED), ("members", Level.UNCHECKED), ("snapshots", Level.UNCHECKED),
        ("locks", Level.UNCHECKED), ("fencing", Level.UNCHECKED),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "area", "check", "level"),
    [
        ({"version": "0.2.0"}, "daemon", "version", Level.WARNING),
        ({"member": {"state": "stalled"}}, "daemon", "state", Level.FAILED),
        ({"member": {"state": "joining", "why": "etcd"}}, "daemon", "state", Level.FAILED),
        ({"member": {"state": "leaving"}}, "daemon", "state", Level.NOTE),
        ({"member": {"lease_remaining_seconds": 3.0}}, "daemon", "lease", Level.WARNING),
        ({"member": {"lease_remaining_seconds": 0.0}}, "daemon", "lease", Level.FAILED),
        ({"member": {"lease_ttl_seconds": 0}}, "daemon", "lease", Level.UNCHECKED),
        ({"warnings": ["memory not locked: RLIMIT_MEMLOCK"]}, "daemon", "warnings", Level.WARNING),
        ({"warnings": ["etcd 3.4.23 has lease bugs", "fencing is unsafe: x"]}, "daemon", "warnings", Level.OK),
        ({"worker": {"heartbeat_age_seconds": 60.0}}, "daemon", "worker", Level.FAILED),
        ({"worker": {"oldest_seconds": 60.0}}, "daemon", "worker", Level.WARNING),
        ({"worker": {"errors": 3}}, "daemon", "worker", Level.NOTE),
        ({"members": [host("host-b", "dead")]}, "members", "state", Level.FAILED),
        ({"members": [host("host-b")]}, "members", "version", Level.UNCHECKED),
        ({"members": [{**host("host-b"), "version": "0.0.9"}]}, "members", "version", Level.WARNING),
        ({"members": []}, "members", "state", Level.UNCHECKED),
        ({"protocol": {"in_force": 1, "newest": 2, "spoken_by_all": 2}}, "members", "protocol", Level.NOTE),
        ({"protocol": {"in_force": 0, "newest": 2, "spoken_by_all": 0}}, "members", "protocol", Level.UNCHECKED),
        ({"members": [{**host("host-b"), "protocols": [2, 3]}]}, "members", "protocol", Level.FAILED),
        ({"snapshots": []}, "snapshots", "state", Level.OK),
        ({"snapshots": [{**SNAPSHOT, "state": "invalid"}]}, "snapshots", "state", Level.FAILED),
        ({"snapshots": [{**SNAPSHOT, "state": "deleting"}]}, "snapshots", "state", Level.NOTE),
        ({"snapshots": [{**SNAPSHOT, "percent_full": None}]}, "snapshots", "full", Level.WARNING),
        ({"snapshots": [{**SNAPSHOT, "percent_full": 85.0}]}, "snapshots", "full", Level.WARNING),
        ({"snapshots": [{**SNAPSHOT, "percent_full": 96.0}]}, "snapshots", "full", Level.FAILED),
        ({"waits": [wait("region/1", "host-a", 0.2, "host-b")]}, "locks", "waits", Level.OK),
        ({"waits": [wait("region/1", "host-a", 4.0, "host-b")]}, "locks", "waits", Level.NOTE),
        ({"waits": [wait("region/1", "host-a", 40.0, "host-b")]}, "locks", "waits", Level.FAILED),
        ({"method": "unsafe"}, "fencing", "method", Level.WARNING),
        ({"fencing": [{"node": "b", "by": "a", "since_seconds": 9.0}]}, "fencing", "waiting", Level.FAILED),
    ],
)
def test_a_daemon_that_is_not_well(changes: dict[str, Any], area: str, check: str, level: Level) -> None:
    """What it says of itself is believed."""
    assert found(told(**changes), check, area).level == level


def test_a_worker_that_has_not_begun_is_a_failure() -> None:
    """There are no counters yet."""
    value = told()
    value["worker"] = None
    assert found(value, "worker").level == Level.FAILED


def test_cow_devices_and_reservations() -> None:
    """Both ways, and unknown."""
    assert checked(CheckFacts("s1", "/dev/c1")).level == Level.OK
    assert checked(CheckFacts("s1", "/dev/c1", "", ("entry 3: x", "entry 4: y"))).level == Level.FAILED
    assert checked(CheckFacts("s1", "/dev/c1", "cannot be opened")).level == Level.UNCHECKED
    assert [registration(Registration("/dev/a", known)).level for known in (True, False, None)] == [
        Level.OK, Level.FAILED, Level.UNCHECKED,
    ]  # fmt: skip


def test_a_check_that_breaks_costs_no_other_check() -> None:
    """A fault of ours is named with its type; a known error with its words."""
    findings: list[Finding] = []

    def broken() -> None:
        raise KeyError("x")

    def refused() -> None:
        raise CsnapError("etcd: away")

    assert examine._try(findings, Subject("etcd"), "endpoint", broken) is None
    assert examine._try(findings, Subject("etcd"), "record", refused) is None
    assert [finding.level for finding in findings] == [Level.UNCHECKED] * 2
    assert findings[0].text == "KeyError: 'x'" and findings[1].text == "etcd: away"


SECRETS = (
    GOOD.partition("[fencing]")[0]
    + """# the password is hunter1
[fencing]
method = "agent"
agent = "/usr/sbin/fence_x"
[fencing.options]
password = "hunter2"
[fencing.hosts.host-a]
ip = "10.0.0.1"
"pass word" = "hunter3"
"""
)


def test_a_configuration_without_its_secrets() -> None:
    """Options and hosts are named and hidden, comments are gone, the rest is the same TOML."""
    shown = bundle.without_secrets(SECRETS, refused=False)
    assert "hunter" not in shown and "10.0.0.1" not in shown.partition("fencing")[2]
    before, after = tomllib.loads(SECRETS), tomllib.loads(shown)
    assert before["volume"] == after["volume"] and before["lockspace"] == after["lockspace"]
    assert after["fencing"]["hosts"]["host-a"].keys() == {"ip", "pass word"}
    inline = 'fencing = {method = "agent", options = {password = "hunter2"}, hosts = {a = {p = "hunter3"}}}'
    assert "hunter" not in bundle.without_secrets(inline, refused=False)
    assert "hunter" not in bundle.without_secrets('fencing = {options = "hunter2", hosts = ["hunter3"]}', refused=False)
    with pytest.raises(CsnapError, match="no TOML"):
        bundle.without_secrets("password = hunter2", refused=True)


def test_a_bundle_is_its_owners_alone_and_overwrites_nothing(tmp_path: Path) -> None:
    """Mode 0600; a file that is there stays."""
    path = tmp_path / "for-support.tar.gz"
    bundle.write(path, {"a/b.txt": "x\n"})
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["for-support/a/b.txt"]
    with pytest.raises(CsnapError, match="is there already"):
        bundle.write(path, {})


def test_regression_half_a_bundle_was_left_and_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: nothing stays, so the next attempt is refused for no older file."""

    def full(file: object, folder: str, parts: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    path = tmp_path / "b.tar.gz"
    monkeypatch.setattr(bundle, "_pack", full)
    with pytest.raises(CsnapError, match="No space left"):
        bundle.write(path, {"a": "b"})
    assert not path.exists()


def test_a_broken_configuration_is_a_finding_and_goes_into_no_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host is looked at all the same; exit code 1."""
    path = tmp_path / "vol.toml"
    path.write_text(SECRETS.replace("[volume]", "[volum]"))
    assert main(["doctor", str(path), "--json", "--bundle", str(tmp_path / "b.tar.gz")]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["failed"] and value["version"] == __version__
    assert [row["about"] for row in value["findings"] if row["area"] == "configuration"] == [str(path)]
    assert any(row["area"] == "host" for row in value["findings"])
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        for name in archive.getnames():
            file = archive.extractfile(name)
            assert file is not None and b"hunter" not in file.read()


def test_the_report_is_for_people() -> None:
    """A block for each area, what to do below, the sum at the end; what comes from outside is made printable."""
    about = Subject("etcd", "http://x")
    rows = [about.ok("a", "fine"), Subject("host").ok("b", "too"), about.failed("c", "no\x1b[2J\n good", "do this")]
    text = doctoring._text([("vol", rows)])
    assert text.splitlines()[0] == "vol: etcd" and "\x1b" not in text
    assert text.index("FAILED") < text.index("-> do this") < text.index("vol: host")
    assert text.endswith("2 ok, 1 failed")
