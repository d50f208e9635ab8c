"""``csnap doctor`` against real daemons and a real etcd: well, and with one thing after the other broken."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.host import run_csnap
from snapd import config as configuration
from snapd.cli.client import ask
from snapd.config import LockspaceConfig
from snapd.doctor import device_facts, devices, etcd, etcd_facts
from snapd.doctor.examine import examine
from snapd.doctor.finding import Finding, Level
from snapd.lockspace.etcd import Tls
from snapd.lockspace.etcd_sync import EtcdSync
from snapd.lockspace.kv import Put, Txn
from snapd.units import KIB, SECOND
from tests.support.daemons import Daemon, Hosts
from tests.support.disks import attached, can_attach, can_mount, file_disk, loop_disk, page_cached_disk
from tests.support.etcd_server import Certificates, EtcdServer, make_certificates, wait_for


@pytest.fixture(scope="module")
def volume() -> Iterator[Hosts]:
    """Two hosts that serve, and a snapshot."""
    with Hosts(2, lease_ttl=10) as cluster:
        cluster.start()
        cluster[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cluster.cow("c1"))
        yield cluster


def examined(daemon: Daemon, **lockspace: Any) -> dict[tuple[str, str], list[Finding]]:
    """The doctor's findings by area and check, in this process."""
    config = configuration.load(daemon.config)
    config = replace(config, lockspace=replace(config.lockspace, **lockspace))
    return by_check(examine(config, lambda command: ask(config.export.admin, {"command": command})))


def by_check(findings: list[Finding]) -> dict[tuple[str, str], list[Finding]]:
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        found.setdefault((finding.area, finding.check), []).append(finding)
    return found


def level(found: dict[tuple[str, str], list[Finding]], area: str, check: str) -> Level:
    """The gravest."""
    order = list(Level)
    return max((finding.level for finding in found[area, check]), key=order.index)


def test_a_volume_that_is_well_has_no_failure(volume: Hosts) -> None:
    """By the command: exit code 0; the distribution's etcd, unsafe fencing and a single member are warned of."""
    ended = run_csnap("doctor", volume[0].config, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    value = json.loads(ended.stdout)
    levels: dict[tuple[str, str], set[str]] = {}
    for row in value["findings"]:
        levels.setdefault((row["area"], row["check"]), set()).add(row["level"])
    assert not value["failed"] and not any("failed" in found for found in levels.values())
    for warned in (("etcd", "version"), ("etcd", "members"), ("fencing", "method")):
        assert levels[warned] == {"warning"}
    for fine in (
        ("daemon", "state"), ("daemon", "record"), ("members", "state"), ("members", "version"), ("snapshots", "check"),
        ("devices", "size"), ("devices", "identity"), ("devices", "writable"), ("etcd", "endpoint"), ("etcd", "alarm"),
        ("etcd", "quorum"), ("etcd", "quota"), ("etcd", "round_trip"), ("etcd", "reads"), ("etcd", "clock"),
    ):  # fmt: skip
        assert levels[fine] == {"ok"}, fine
    if not Path("/run/systemd/system").is_dir():
        assert levels["unit", "unit"] == {"not checked"}
    text = run_csnap("doctor", volume[0].config).stdout
    assert "vol: etcd" in text and "-> " in text and text.splitlines()[-1].endswith("not checked")


def test_an_old_etcd_that_is_not_allowed_is_a_failure(volume: Hosts) -> None:
    """Debian 12's 3.4."""
    assert level(examined(volume[0], allow_old_etcd=False), "etcd", "version") == Level.FAILED


def test_an_etcd_that_never_compacts_is_found_by_its_history(volume: Hosts) -> None:
    """After a thousand revisions; once compacted, the history is counted from there."""
    assert level(examined(volume[0]), "etcd", "compaction") == Level.NOTE
    with EtcdSync([volume.etcd.url]) as client:
        for number in range(1001):
            client.txn(Txn((), (Put("filler", str(number).encode()),)))
    found = examined(volume[0])
    assert level(found, "etcd", "compaction") == Level.WARNING
    assert "auto-compaction" in found["etcd", "compaction"][0].todo
    revision = volume.etcd.revision()
    volume.etcd.compact(revision - 10)
    found = examined(volume[0])
    assert level(found, "etcd", "compaction") == Level.OK
    assert found["etcd", "compaction"][0].text.startswith("10 of ")


def test_an_etcd_that_is_full_says_what_to_type(volume: Hosts) -> None:
    """The alarm NOSPACE; disarmed, it is well again."""
    member = volume.etcd._ask("maintenance/status")["header"]["member_id"]
    volume.etcd._ask("maintenance/alarm", action="ACTIVATE", memberID=member, alarm="NOSPACE")
    found = examined(volume[0])
    assert level(found, "etcd", "alarm") == Level.FAILED
    assert "alarm disarm" in found["etcd", "alarm"][0].todo
    assert level(found, "etcd", "endpoint") == Level.OK
    volume.etcd.etcdctl("alarm", "disarm")
    assert level(examined(volume[0]), "etcd", "alarm") == Level.OK


def test_a_read_only_device_is_named(volume: Hosts) -> None:
    """The COW device's file; everything else is as before."""
    cow = volume.cow("c1")
    cow.chmod(0o444)
    try:
        found = examined(volume[0])
    finally:
        cow.chmod(0o644)
    failed = [finding.about for finding in found["devices", "writable"] if finding.level == Level.FAILED]
    assert failed == [f"{cow} (COW of s1)"]
    assert level(found, "snapshots", "check") == Level.OK


def test_with_the_daemon_down_the_rest_is_checked(volume: Hosts) -> None:
    """Devices and etcd are looked at, the record comes from etcd; what only the daemon knows is not checked."""
    assert volume[1].terminate() == 0
    found = examined(volume[1])
    assert level(found, "daemon", "answers") == Level.FAILED
    for area in ("members", "snapshots"):
        assert found[area, "state"][0].level == Level.UNCHECKED
    assert found["locks", "waits"][0].level == Level.UNCHECKED
    for made in (("etcd", "endpoint"), ("devices", "size"), ("snapshots", "check"), ("daemon", "record")):
        assert level(found, *made) == Level.OK
    ended = run_csnap("doctor", volume[1].config)
    assert ended.returncode == 1 and "FAILED" in ended.stdout and ended.stderr == ""
    volume[1].start()
    volume[1].wait_active()


def test_with_etcd_down_the_devices_are_looked_at(volume: Hosts) -> None:
    """Paused, it answers nobody: within seconds, and the origin's record is not known."""
    volume.etcd.pause()
    try:
        found = examined(volume[0])
    finally:
        volume.etcd.resume()
    assert level(found, "etcd", "endpoint") == Level.FAILED
    assert level(found, "etcd", "reads") == Level.FAILED
    assert level(found, "etcd", "record") == Level.UNCHECKED
    assert found["devices", "size"][0].level == Level.UNCHECKED
    assert level(found, "devices", "o_direct") == Level.OK
    for daemon in volume:
        daemon.wait_active()


def test_a_bundle_has_what_support_needs(volume: Hosts, tmp_path: Path) -> None:
    """Report, answers of the daemon, configuration; no secret."""
    config = tmp_path / "vol.toml"
    config.write_text(volume[0].config.read_text() + '[fencing.options]\npassword = "hunter2"\n')
    path = tmp_path / "bundle.tar.gz"
    ended = run_csnap("doctor", config, "--bundle", path)
    assert ended.returncode == 0 and "look through it" in ended.stderr
    with tarfile.open(path) as archive:
        parts = {}
        for name in archive.getnames():
            file = archive.extractfile(name)
            assert file is not None
            parts[name.removeprefix("bundle/")] = file.read().decode()
    assert {"report.txt", "report.json", "about.txt", "config/vol.toml", "vol/journal.txt"} <= parts.keys()
    assert json.loads(parts["vol/status.json"])["node"] == "host-a"
    assert json.loads(parts["vol/observe.json"])["format"] == 1 and json.loads(parts["vol/locks.json"])
    assert not any("hunter2" in text for text in parts.values())


# ---- TLS


def expired(directory: Path, made: Certificates) -> Certificates:
    """The same, but for a server whose certificate ended yesterday."""
    sign = ["openssl", "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "san", "-out", "old.pem"]  # fmt: skip
    when: tuple[tuple[str, ...], ...] = (
        ("-days", "-1"),
        ("-not_before", "20200101000000Z", "-not_after", "20200201000000Z"),  # OpenSSL 3.4 and newer
    )
    assert any(not subprocess.run([*sign, *dates], cwd=directory, capture_output=True).returncode for dates in when)
    return replace(made, server=Tls(made.ca, str(directory / "old.pem"), made.server.key))


def lockspace_of(server: EtcdServer, made: Certificates) -> LockspaceConfig:
    client = made.client
    return LockspaceConfig((server.url,), 10, 5 * SECOND, client.ca, client.cert, client.key, allow_old_etcd=True)


def test_certificates_are_read_over_tls_and_on_disk(tmp_path: Path) -> None:
    """Two days left is a warning; a key that everybody may read is one too; all else over TLS is as without."""
    made = make_certificates(tmp_path)
    os.chmod(made.client.key, 0o644)  # noqa: PTH101
    with EtcdServer(certificates=made) as server:
        lockspace = lockspace_of(server, made)
        findings = [*etcd.judge(etcd_facts.gather(lockspace, "/x"))]
        findings += [finding for file in etcd_facts.files(lockspace) for finding in etcd.judge_file(file)]
    found = by_check(findings)
    assert level(found, "etcd", "certificate") == Level.WARNING
    assert [finding.level for finding in found["etcd", "tls_file"]] == [Level.WARNING] * 3
    for fine in ("endpoint", "clock", "quota", "reads"):
        assert level(found, "etcd", fine) == Level.OK


def test_an_expired_certificate_is_named_as_the_reason(tmp_path: Path) -> None:
    """The endpoint cannot be used, and the doctor says why."""
    made = expired(tmp_path, make_certificates(tmp_path))
    server = EtcdServer(certificates=made)
    try:
        server.start(wait=False)
        wait_for(lambda: _listens(server.url), "etcd listens")
        found = by_check(list(etcd.judge(etcd_facts.gather(lockspace_of(server, made), "/x"))))
    finally:
        server.destroy()
    assert level(found, "etcd", "endpoint") == Level.FAILED
    assert found["etcd", "certificate"][0].level == Level.FAILED
    assert "expired" in found["etcd", "certificate"][0].text


def _listens(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 1).close()
    except OSError:
        return False
    return True


# ---- devices


def looked_at(path: str) -> dict[tuple[str, str], list[Finding]]:
    expected = devices.Expected(None, None, 16 * KIB, 512)
    return by_check(list(devices.judge(device_facts.gather(path, "COW of s1"), expected)))


@pytest.mark.skipif(not can_attach(), reason="loop devices need root")
def test_real_block_devices() -> None:
    """4096-byte blocks against an origin of 512; a loop device that is read-only."""
    with loop_disk(4096) as path:
        found = looked_at(path)
        assert level(found, "devices", "logical_block") == Level.FAILED
        assert level(found, "devices", "write_cache") == Level.OK
    with file_disk() as backing:
        command = ["losetup", "--find", "--show", "--read-only", backing]  # blockdev --setro would outlive the test
        path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        try:
            found = looked_at(path)
        finally:
            subprocess.run(["losetup", "--detach", path], check=True)
    assert level(found, "devices", "writable") == Level.FAILED


@pytest.mark.skipif(not (can_attach() and can_mount()), reason="mounting needs root")
def test_a_mounted_device_and_a_file_without_o_direct(tmp_path: Path) -> None:
    """Both are named: the first changes behind csnap's back, the second is cached."""
    with file_disk() as backing, attached(backing) as path:
        assert level(looked_at(path), "devices", "use") == Level.OK
        subprocess.run(["mkfs.ext4", "-q", path], check=True)
        subprocess.run(["mount", path, tmp_path], check=True)
        try:
            found = looked_at(path)
        finally:
            subprocess.run(["umount", tmp_path], check=True)
        assert level(found, "devices", "use") == Level.FAILED and str(tmp_path) in found["devices", "use"][0].text
    with page_cached_disk() as path:
        assert level(looked_at(path), "devices", "o_direct") == Level.WARNING
