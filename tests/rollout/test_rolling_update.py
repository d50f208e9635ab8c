"""An update and a rollback under load on every host: no I/O error, no snapshot changed; a bad release stops at once.

The tests are one story and run in their order; writers on all three hosts write and read back from its beginning to
its end, each by one connection that is never made anew.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.host import Host
from tests.hosts.testbed import Testbed
from tests.rollout.conftest import Rollout
from tests.rollout.controller import VOLUME, Controller
from tests.rollout.releases import hang, tamper
from tests.support.etcd_server import wait_for

pytestmark = pytest.mark.timeout(900)  # runs of Ansible, on a busy machine

CSNAP = "/opt/csnap/current/bin/csnap"
SNAPSHOT, COW = "before-update", "/dev/csnap-cow3"
BLOCKS = 4096  # 16 MiB of the origin's 64, for each host
WRITER = Path(__file__).with_name("writer.py")
SUM = """\
import hashlib, nbd, sys
handle = nbd.NBD()
handle.set_export_name(sys.argv[2])
handle.connect_unix(sys.argv[1])
digest = hashlib.sha256()
for offset in range(0, handle.get_size(), 1 << 20):
    digest.update(handle.pread(1 << 20, offset))
print(digest.hexdigest())
"""


class Story:
    """The cluster under load."""

    def __init__(self, bed: Testbed, controller: Controller) -> None:
        self.hosts = list(bed.hosts.values())
        self.controller = controller
        self.first = str(controller.variables["csnap_version"])
        self.hosts[0].run(CSNAP, "snapshot", "create", VOLUME, SNAPSHOT, "--cow", COW)
        self.checksum = self.sum(self.hosts[0])
        for number, host in enumerate(self.hosts):
            host.write("/root/writer.py", WRITER.read_text())
            socket = f"/run/csnap/{VOLUME}/nbd.sock"
            load = ["python3", "/root/writer.py", socket, str(number * BLOCKS), str(BLOCKS), "/root/load.json"]
            host.run("systemd-run", "--quiet", "--unit=writer", "--property=RemainAfterExit=yes", *load)
        for host in self.hosts:
            wait_for(lambda host=host: (host.root / "root/load.started").exists(), "writers write")  # type: ignore[misc]

    def sum(self, host: Host) -> str:
        """Return the checksum of the snapshot as this host reads it."""
        return host.run("python3", "-c", SUM, f"/run/csnap/{VOLUME}/nbd.sock", f"snapshot/{SNAPSHOT}").strip()

    def status(self, host: Host) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(host.run(CSNAP, "status", VOLUME, "--json"))
        return found

    def versions(self) -> list[str]:
        """Return which version each host's daemon has; it is active."""
        every = [self.status(host) for host in self.hosts]
        assert [one["member"]["state"] for one in every] == ["active"] * len(every)
        return [str(one["version"]) for one in every]

    def daemons(self) -> list[str]:
        """Return each host's daemon process."""
        return [host.show(f"csnapd@{VOLUME}", "MainPID") for host in self.hosts]

    def starts(self, host: Host) -> list[tuple[int, str]]:
        """Return when the host's daemon was stopped and when it was active, in microseconds."""
        rows = host.entries(f"UNIT=csnapd@{VOLUME}.service")
        words = [(int(row["__REALTIME_TIMESTAMP"]), row["MESSAGE"].split()[0]) for row in rows]
        return [(time, word) for time, word in words if word in ("Stopping", "Started")]

    def check_load(self) -> None:
        """Every writer is at work, and the snapshot is what it was."""
        for host in self.hosts:
            assert host.show("writer", "SubState") == "running", host.run("cat", "/root/load.json", check=False)
        assert {self.sum(host) for host in self.hosts} == {self.checksum}

    def end(self) -> list[dict[str, Any]]:
        """Stop the writers; return what each has to say."""
        for host in self.hosts:
            host.run("systemctl", "kill", "--signal=TERM", "writer")
            host.wait_for("writer", "SubState", "exited")
        return [json.loads(host.run("cat", "/root/load.json")) for host in self.hosts]


@pytest.fixture(scope="module")
def story(bed: Testbed, controller: Controller, rollout: Rollout) -> Iterator[Story]:
    story = Story(bed, controller)
    yield story
    for host in story.hosts:
        host.run("systemctl", "stop", "writer", check=False)
        host.run("sh", "-c", "rm -f /root/load.* /root/writer.py", check=False)
    story.hosts[0].run(CSNAP, "snapshot", "delete", VOLUME, SNAPSHOT)


def test_an_update_under_load(story: Story) -> None:
    """Every host runs the new version; no two were without their daemon at once; a second run changes nothing."""
    version = story.controller.build("next")
    begun = {host.name: len(story.starts(host)) for host in story.hosts}
    story.controller.play("rolling_update", csnap_version=version)
    assert story.versions() == [version] * 3
    story.check_load()
    gaps = []
    for host in story.hosts:
        (stopped, _), (started, _) = story.starts(host)[begun[host.name] :]
        gaps.append((stopped, started))
    assert sorted(gaps) == gaps  # in the inventory's order
    assert all(earlier[1] < later[0] for earlier, later in itertools.pairwise(gaps))
    again = story.controller.play("rolling_update", csnap_version=version)
    assert [again.count(host.name, "changed") for host in story.hosts] == [0, 0, 0]


def test_a_release_that_is_never_active_stops_at_the_first_host(story: Story, tmp_path: Path) -> None:
    """That host goes back by itself and is well, its clients have only waited; the others are not touched."""
    (before,) = set(story.versions())
    version = story.controller.build("bad")
    tamper(Path(story.controller.variables["csnap_wheelhouse"]) / f"csnap-{version}", hang)
    daemons = story.daemons()
    run = story.controller.play("rolling_update", fails=True, csnap_version=version, release_timeout=8)
    assert_says(run.output, f"host1: csnap {version} was not well: no daemon answers")
    assert_says(run.output, f"It was put back to {before} and is well")
    assert_says(run.output, f"With {version} run: none; not touched: host2, host3")
    assert story.versions() == [before] * 3
    assert [old == new for old, new in zip(daemons, story.daemons(), strict=True)] == [False, True, True]
    story.check_load()


def test_a_gate_keeps_the_first_host_from_being_touched(story: Story) -> None:
    """A member of etcd that is down, and a snapshot that is too full: each is named, and nothing is restarted."""
    daemons = story.daemons()
    etcd = story.hosts[2]
    etcd.run("systemctl", "stop", "etcd")
    try:
        run = story.controller.play(
            "rolling_update", fails=True, csnap_version=story.first, release_gate_timeout=0, release_full=0
        )
    finally:
        etcd.run("systemctl", "start", "etcd")
    assert_says(run.output, f"etcd https://{etcd.address}:2379: ")
    assert_says(run.output, "% full, expected below 0")
    assert story.daemons() == daemons


def test_back_on_purpose_under_load(story: Story) -> None:
    """rollback.yml takes every host to the version before; the units are that version's."""
    story.controller.play("rollback")
    assert story.versions() == [story.first] * 3
    for host in story.hosts:
        assert host.run("readlink", "/opt/csnap/current").strip() == story.first
    story.check_load()


def test_nobody_s_request_failed(story: Story) -> None:
    """From before the update until after the rollback: no error, and what was acknowledged is there."""
    results = story.end()
    print(results)  # how long a request waited
    assert [one["errors"] for one in results] == [0, 0, 0], results
    assert all(one["requests"] > 100 for one in results), results


def assert_says(output: str, words: str) -> None:
    """They stand there, however Ansible has folded them into lines."""
    text = " ".join(output.replace("\\", " ").split())
    assert words in text, output[-4000:]
