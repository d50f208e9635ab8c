"""``csnap fence test`` and ``csnap fence confirm`` as people and programs see them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from snapd.cli import fencing
from snapd.cli.main import main
from snapd.errors import LockspaceError, NoDaemon
from snapd.helper.service import Service
from snapd.lockspace.fencing.keys import reservation_key
from tests.support.scsi_lun import Lun
from tests.unit.test_helper import World
from tests.unit.test_watchdog import FakeSystem

KEYS = {"host-a": reservation_key("a"), "host-b": reservation_key("b")}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Asked:
    """Plays the daemon; an answer that is an exception is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answer: Any = NoDaemon("nobody")
        monkeypatch.setattr(fencing, "ask", self._ask)

    def _ask(self, path: str, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def config(world: World, method: str = "", more: str = "") -> str:
    if method:
        text = world.config.path.read_text().replace('"scsi-pr"', f'"{method}"\n{more}')
        world.config.path.write_text(text)
    return str(world.config.path)


def tried(capsys: pytest.CaptureFixture[str], path: str) -> tuple[int, dict[str, Any]]:
    code = main(["fence", "test", path, "--json"])
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, value


# ---- test


@pytest.fixture
def luns(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Lun]:
    """The helper that ``fence test`` asks works on LUNs played here."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(
        "snapd.helper.service.Service",
        lambda config: Service(config, lambda fd, path: world.luns.setdefault(path, Lun()).path("host-a")),
    )
    return world.luns


def test_every_device_is_tried_without_a_daemon(
    capsys: pytest.CaptureFixture[str],
    world: World,
    daemon: Asked,
    luns: dict[str, Lun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Origin and COW devices that etcd knows; as JSON and for people; nothing stays."""
    monkeypatch.setattr(fencing, "_registry", lambda config: (KEYS, [str(world.cow)]))
    code, value = tried(capsys, config(world))
    assert code == 0 and value["works"] and value["method"] == "scsi-pr"
    assert {row["target"] for row in value["steps"]} == {str(world.origin), str(world.cow)}
    assert not any(lun.keys or lun.holder for lun in luns.values())
    assert main(["fence", "test", config(world)]) == 0
    shown = capsys.readouterr().out
    assert "method scsi-pr" in shown and "preempt     works   and abort" in shown


def test_a_device_that_does_not_serve_fails_it(
    capsys: pytest.CaptureFixture[str], world: World, daemon: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regular file has no reservations: exit 1, naming the device."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(fencing, "_registry", lambda config: (KEYS, []))
    code, value = tried(capsys, config(world))
    assert code == 1 and not value["works"]
    (row,) = value["steps"]
    assert str(world.origin) in row["note"]


@pytest.mark.parametrize(
    ("registry", "words"),
    [
        (({**KEYS, "host-z": ""}, []), "host-z runs without a key"),
        (LockspaceError("etcd: away"), "etcd does not say who is running"),
    ],
)
def test_nobody_is_kept_from_writing_by_a_test(
    capsys: pytest.CaptureFixture[str],
    world: World,
    daemon: Asked,
    luns: dict[str, Lun],
    monkeypatch: pytest.MonkeyPatch,
    registry: Any,
    words: str,
) -> None:
    """A reservation, be it for a moment, fails the writes of members that have not registered: then it is left out."""

    def read(config: object) -> Any:
        if isinstance(registry, Exception):
            raise registry
        return registry

    monkeypatch.setattr(fencing, "_registry", read)
    code, value = tried(capsys, config(world))
    (reserve,) = [row for row in value["steps"] if row["step"] == "reserve"]
    assert code == 0 and reserve["ok"] is None and words in reserve["note"]


def test_beside_the_running_daemon_its_key_is_used(
    capsys: pytest.CaptureFixture[str], world: World, daemon: Asked, luns: dict[str, Lun]
) -> None:
    """It tells its key and its devices; the key is there afterwards."""
    lun = luns.setdefault(str(world.origin), Lun())
    key = int(KEYS["host-a"], 16)
    lun.path("host-a").register(key)
    daemon.answer = {"key": KEYS["host-a"], "keys": KEYS, "devices": []}
    code, value = tried(capsys, config(world))
    assert code == 0 and [row["step"] for row in value["steps"]] == ["register", "reserve", "preempt"]
    assert lun.keys == {"host-a": key}


def test_without_root_and_helper_it_says_so(
    capsys: pytest.CaptureFixture[str], world: World, daemon: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what to do."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["fence", "test", config(world)]) == 1
    assert "run it as root" in capsys.readouterr().err


def test_the_watchdog_is_looked_at(
    capsys: pytest.CaptureFixture[str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, its timeout read, disarmed."""
    system = FakeSystem()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("snapd.helper.service.Service", lambda config: Service(config, system=system))
    code, value = tried(capsys, config(world, "watchdog", "watchdog_timeout = 9"))
    assert code == 0 and value["steps"][0]["note"] == "Fake Watchdog, 9 s"
    assert system.fires is None
    system.options = 0
    code, value = tried(capsys, config(world))
    assert code == 1 and "cannot fence" in value["steps"][0]["note"]


def agent(world: World, body: str) -> str:
    path = world.directory / "fence_test"
    path.write_text(f"#!/bin/sh\ncat >> {path}.input\n{body}\n")
    path.chmod(0o755)
    hosts = '[fencing.hosts.host-a]\nplug = "1"\n[fencing.hosts.host-b]\nplug = "2"\n'
    return config(world, "agent", f'agent = "{path}"\n{hosts}')


def test_the_agent_is_asked_and_nothing_is_switched(capsys: pytest.CaptureFixture[str], world: World) -> None:
    """``status`` for every configured host; 2 means that one is off, which is an answer, too."""
    code, value = tried(capsys, agent(world, 'tail -n 4 "$0.input" | grep -q nodename=host-b && exit 2; exit 0'))
    assert code == 0
    assert [(row["target"], row["step"], row["ok"]) for row in value["steps"]] == [
        ("host-a", "status", True),
        ("host-b", "status", True),
    ]
    told = (world.directory / "fence_test.input").read_text()
    assert "action=status" in told and "action=off" not in told


def test_an_agent_without_status_is_monitored(capsys: pytest.CaptureFixture[str], world: World) -> None:
    """And one that does neither fails, with what it said."""
    code, value = tried(capsys, agent(world, 'tail -n 4 "$0.input" | grep -q action=monitor'))
    assert code == 0 and {row["step"] for row in value["steps"]} == {"monitor"}
    (world.directory / "fence_test").write_text("#!/bin/sh\necho no such host\nexit 1\n")
    code, value = tried(capsys, config(world))
    assert code == 1 and "no such host" in value["steps"][0]["note"]


def test_unsafe_fails_the_test(capsys: pytest.CaptureFixture[str], world: World) -> None:
    """There is nothing that could work."""
    code, value = tried(capsys, config(world, "unsafe"))
    assert code == 1 and "fences nobody" in value["steps"][0]["note"]


# ---- confirm


def test_confirming_asks_a_person(
    capsys: pytest.CaptureFixture[str], world: World, daemon: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what can break, and wants the member's name typed."""
    daemon.answer = {"node": "host-b"}
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    assert main(["fence", "confirm", config(world), "host-b"]) == 1
    assert daemon.requests == []
    shown = capsys.readouterr()
    assert "overwrite what other hosts have written" in " ".join(shown.out.split())
    assert "not confirmed" in shown.err
    monkeypatch.setattr(sys, "stdin", Terminal("host-b\n"))
    assert main(["fence", "confirm", config(world), "host-b"]) == 0
    assert daemon.requests == [{"command": "fence-confirm", "node": "host-b"}]


def test_a_script_has_to_say_yes(
    capsys: pytest.CaptureFixture[str], world: World, daemon: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal and without --yes nothing is asked of the daemon."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("host-b\n"))
    assert main(["fence", "confirm", config(world), "host-b"]) == 1
    assert daemon.requests == []
    daemon.answer = {"node": "host-b"}
    assert main(["fence", "confirm", config(world), "host-b", "--yes"]) == 0
    assert daemon.requests == [{"command": "fence-confirm", "node": "host-b"}]


def test_without_a_daemon_confirming_ends_with_3(world: World, daemon: Asked) -> None:
    """Any host of the cluster may be asked."""
    assert main(["fence", "confirm", config(world), "host-b", "--yes"]) == 3
