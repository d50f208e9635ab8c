"""The module csnap_snapshot, against a real daemon: what it changes, what it says it would change, what it refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapd.cli.client import ask
from tests.ansible.runner import Runner
from tests.support.daemons import Hosts


class Module:
    """The module's runs, on the first host's volume."""

    def __init__(self, cluster: Hosts, directory: Path) -> None:
        self.cluster = cluster
        self._run = Runner("csnap_snapshot", directory)

    def __call__(self, name: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
        return self._run(check, **{"volume": self.cluster[0].config, "name": name, **arguments})

    def refusal(self, name: str, **arguments: Any) -> str:
        """Run what must fail, leaving every snapshot as it was; return the message."""
        before = self.listed()
        result = self(name, **arguments)
        assert result.get("failed"), result
        assert self.listed() == before
        return str(result["msg"])

    def listed(self) -> list[tuple[str, str, bool]]:
        """Return what snapshots there are: name, state, whether writable; newest first."""
        return [(row["name"], row["state"], row["writable"]) for row in rows(self.cluster)]


def rows(cluster: Hosts) -> list[dict[str, Any]]:
    """Return the snapshots as the daemon tells them."""
    found: list[dict[str, Any]] = ask(str(cluster[0].directory / "admin.sock"), {"command": "status"})["snapshots"]
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with Hosts(1) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def module(cluster: Hosts, tmp_path: Path) -> Iterator[Module]:
    """The module, on a volume without snapshots, and without any afterwards."""
    yield Module(cluster, tmp_path / "bin")
    for row in reversed(rows(cluster)):
        ask(str(cluster[0].directory / "admin.sock"), {"command": "snapshot-delete", "name": row["name"]})


def test_present_takes_the_snapshot_once(module: Module) -> None:
    """The first run takes it and says so, before and after; the second changes nothing and returns the same facts."""
    device = module.cluster.cow("once")
    first = module("s1", device=device)
    assert first["changed"] is True
    assert first["diff"]["before"] == {}
    assert first["diff"]["after"] == {"name": "s1", "state": "active", "cow": str(device), "writable": False}
    assert first["snapshot"]["cow"] == str(device)
    second = module("s1", device=device)
    assert second["changed"] is False
    assert second["diff"]["before"] == second["diff"]["after"] == first["diff"]["after"]
    assert second["snapshot"]["store"] == first["snapshot"]["store"]
    assert module.listed() == [("s1", "active", False)]


def test_absent_deletes_it_once(module: Module) -> None:
    """The first run deletes it, the second finds nothing to do."""
    device = module.cluster.cow("gone")
    module("s1", device=device)
    first = module("s1", state="absent", device=device)
    assert first["changed"] is True
    assert first["diff"]["before"]["name"] == "s1"
    assert first["diff"]["after"] == {} == first["snapshot"]
    second = module("s1", state="absent")
    assert second["changed"] is False
    assert second["diff"] == {"before": {}, "after": {}}
    assert module.listed() == []


def test_a_writable_snapshot(module: Module) -> None:
    """``writable`` is passed on; a snapshot that is there with the other value is refused."""
    device = module.cluster.cow("writable")
    assert module("s1", device=device, writable=True)["snapshot"]["writable"] is True
    assert "writable, which is fixed" in module.refusal("s1", device=device)


def test_check_mode_tells_and_changes_nothing(module: Module) -> None:
    """It says what would change, with the difference that the real run then makes."""
    device = module.cluster.cow("checked")
    told = module("s1", check=True, device=device)
    assert told["changed"] is True
    assert module.listed() == []
    done = module("s1", device=device)
    assert told["diff"] == done["diff"]
    assert module("s1", check=True, device=device)["changed"] is False
    told = module("s1", check=True, state="absent")
    assert told["changed"] is True
    assert module.listed() == [("s1", "active", False)]
    assert module("s1", state="absent")["diff"] == told["diff"]
    assert module("s1", check=True, state="absent")["changed"] is False


def test_a_snapshot_of_that_name_on_another_device_is_refused(module: Module) -> None:
    """Neither taken anew nor deleted: both devices are named."""
    device, other = module.cluster.cow("mine"), module.cluster.cow("other")
    module("s1", device=device)
    for state in ("present", "absent"):
        for check in (False, True):
            message = module.refusal("s1", state=state, device=other, check=check)
            assert str(device) in message
            assert str(other) in message


def test_two_paths_of_one_device_are_one(module: Module, tmp_path: Path) -> None:
    """A link to the device is no other device."""
    device = module.cluster.cow("linked")
    module("s1", device=device)
    link = tmp_path / "by-id"
    link.symlink_to(device)
    assert module("s1", device=link)["changed"] is False


def test_a_device_in_use_is_refused(module: Module) -> None:
    """By the daemon, and in check mode by the module: the snapshot that has it is named."""
    device = module.cluster.cow("used")
    module("s1", device=device)
    for check in (False, True):
        assert "belongs to snapshot s1" in module.refusal("s2", device=device, check=check)


def test_only_the_oldest_can_be_deleted(module: Module) -> None:
    """Check mode foresees that the daemon refuses."""
    module("s1", device=module.cluster.cow("old"))
    module("s2", device=module.cluster.cow("young"))
    for check in (False, True):
        assert "s1 is older and reads through it" in module.refusal("s2", state="absent", check=check)
    assert module("s1", state="absent", check=True)["changed"] is True


def test_foreign_content_is_overwritten_only_by_force(module: Module) -> None:
    """``force`` is passed on."""
    device = module.cluster.cow("foreign")
    with open(device, "r+b") as file:
        file.write(b"somebody's data")
    assert "--force" in module.refusal("s1", device=device)
    assert module("s1", device=device, force=True)["changed"] is True


def test_an_invalid_snapshot_is_not_present(module: Module) -> None:
    """Who asks for it is told to delete it; absent deletes it."""
    device = module.cluster.cow("invalid", 128 * 1024)
    module("s1", device=device)
    _overfill(module)
    assert module.listed()[0][1] == "invalid"
    assert "delete it first" in module.refusal("s1", device=device)
    assert module("s1", state="absent", device=device)["changed"] is True


def test_arguments_are_checked(module: Module) -> None:
    """A missing device, a relative one, a device that is not there, a name that csnap refuses."""
    assert "device" in module.refusal("s1")
    assert "absolute" in module.refusal("s1", device="cow1")
    for check in (False, True):
        assert "/nowhere/cow" in module.refusal("s1", device="/nowhere/cow", check=check)
    assert "a/b" in module.refusal("a/b", device=module.cluster.cow("named"))


def test_without_a_daemon_it_says_so(module: Module, tmp_path: Path) -> None:
    """The message asks for the daemon; a volume without configuration is named."""
    config = tmp_path / "other.toml"
    text = module.cluster[0].config.read_text()
    config.write_text(text.replace(str(module.cluster[0].directory), str(tmp_path / "none")))
    assert "csnapd running" in module("s1", volume=str(config), state="absent")["msg"]
    assert "nowhere" in module("s1", volume="nowhere", state="absent")["msg"]


def _overfill(module: Module) -> None:
    """Change more chunks of the origin than the COW device has."""
    script = "import nbd, sys; h = nbd.NBD(); h.set_export_name('origin'); h.connect_unix(sys.argv[1])\n"
    script += "for n in range(32): h.pwrite(b'x' * 512, n * 16384)"
    subprocess.run(["/usr/bin/python3", "-c", script, module.cluster[0].socket], check=True, env=dict(os.environ))
