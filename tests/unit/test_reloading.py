"""Reading the configuration again: what is applied, what needs a restart, and that a bad file changes nothing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, cast

import pytest

from snapd import config as configuration
from snapd.config import Config
from snapd.daemon.admin import Reply
from snapd.daemon.loop import Loop
from snapd.daemon.notify import Notifier
from snapd.daemon.reloading import ELSEWHERE, KEYS, LIVE, Reloading, plan
from snapd.daemon.status import View, line, report
from snapd.errors import CsnapError
from snapd.lockspace.fencing.agent import Agent, AgentSettings
from snapd.units import SECOND
from tests.unit.test_config import GOOD

ROOT = Path(__file__).parents[2]
AGENT = """method = "agent"
agent = "/usr/sbin/fence_x"
[fencing.options]
password = "one"
"""
FENCED = GOOD.replace('method = "unsafe"\n', AGENT)


class FakeReply:
    def __init__(self) -> None:
        self.outcome: Any = None

    def progress(self, text: str) -> None: ...

    def result(self, value: Any) -> None:
        self.outcome = value

    def error(self, error: CsnapError) -> None:
        self.outcome = error


class FakeAgent:
    settings: AgentSettings | None = None

    def configure(self, settings: AgentSettings) -> None:
        self.settings = settings


class Scene:
    """A daemon's reloading with a real file, a loop, and what systemd and the log are told."""

    def __init__(self, directory: Path, text: str = FENCED) -> None:
        self.path = directory / "vmstore.toml"
        self.path.write_text(text)
        config = configuration.load(self.path)
        self.loop = Loop()
        self.told: list[str] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        self.view = View(config)
        notifier = Notifier(self.loop, self._tell, 0, lambda: "", lambda: line(self.view))
        notifier.ready()
        self.agent = FakeAgent()
        self.reloading = Reloading(
            config, self.loop, lambda priority, event, fields: self.events.append((event, fields)), self.view, notifier
        )
        self.reloading.agent = cast(Agent, self.agent)

    def _tell(self, text: str) -> bool:
        self.told.append(text.partition("\n")[0])
        return True

    def reload(self, text: str) -> Any:
        """What the command line is answered when the file now holds ``text``."""
        self.path.write_text(text)
        reply = FakeReply()
        self.reloading.command({}, cast(Reply, reply))
        self.run_until(lambda: reply.outcome is not None)
        return reply.outcome

    def run_until(self, true: Any) -> None:
        end = self.loop.now() + 10 * SECOND
        while not true():
            assert self.loop.now() < end
            self.loop.turn(0.05)


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    made = Scene(tmp_path)
    yield made
    made.loop.close()


def test_what_can_change_live_is_in_force_at_once(scene: Scene) -> None:
    """A freeze limit counts from the next command on, an agent's options from the next attempt."""
    said = scene.reload(FENCED.replace("lease_ttl = 10", "freeze_limit = 2").replace('"one"', '"two"'))
    assert said == {"applied": ["[lockspace] freeze_limit", "[fencing] options"], "needs_restart": []}
    assert scene.reloading.limits.freeze == 2 * SECOND
    assert scene.agent.settings is not None
    assert scene.agent.settings.lines("host-b")["password"] == "two"
    assert scene.events == [("reloaded", {"applied": "[lockspace] freeze_limit, [fencing] options"})]
    assert scene.told[-2:] == ["RELOADING=1", "READY=1"]


def test_what_needs_a_restart_is_said_until_it_comes_or_the_file_is_put_back(scene: Scene) -> None:
    """In the answer, the log, the status and systemd's line; the old value goes on being used."""
    said = scene.reload(FENCED.replace("127.0.0.1:9942", "127.0.0.1:9943"))
    assert said == {"applied": [], "needs_restart": ["[metrics] listen"]}
    assert scene.reloading.config.metrics.port == 9942
    assert "needs a restart for [metrics] listen" in line(scene.view)
    assert report(scene.view)["reload"] == {"needs_restart": ["[metrics] listen"], "error": ""}
    assert scene.reload(FENCED.replace("127.0.0.1:9942", "127.0.0.1:9943"))["needs_restart"] == ["[metrics] listen"]
    assert scene.reload(FENCED) == {"applied": [], "needs_restart": []}
    assert "restart" not in line(scene.view)


def test_a_section_changes_as_a_whole_or_not_at_all(scene: Scene) -> None:
    """Fencing is never made of two files: with another method, the agent goes on with the options it has."""
    before = scene.reloading.config
    said = scene.reload(GOOD.replace("lease_ttl = 10", "lease_ttl = 12\nfreeze_limit = 2"))
    assert said["applied"] == []
    assert set(said["needs_restart"]) == {
        "[lockspace] lease_ttl", "[lockspace] freeze_limit", "[fencing] method", "[fencing] agent", "[fencing] options"
    }  # fmt: skip
    assert scene.reloading.config == before


def test_a_broken_file_is_refused_as_a_whole(scene: Scene) -> None:
    """Also what stands before the mistake; the answer names it; the status says so until a good file is read."""
    before = scene.reloading.config
    said = scene.reload(FENCED.replace("lease_ttl = 10", "freeze_limit = 2\nlease_tll = 10"))
    assert "[lockspace] lease_tll: unknown" in str(said)
    assert scene.reloading.config == before
    assert scene.reloading.limits.freeze == 5 * SECOND
    assert "lease_tll" in report(scene.view)["reload"]["error"]
    assert "the changed configuration was refused" in line(scene.view)
    assert scene.told[-3:-1] == ["RELOADING=1", "READY=1"]
    scene.reload(FENCED)
    assert report(scene.view)["reload"] == {"needs_restart": [], "error": ""}


def test_the_last_of_several_counts(scene: Scene) -> None:
    """Reloads do not overtake one another: each reads the file when the one before is done."""
    for seconds in (1, 2, 3):
        scene.path.write_text(FENCED.replace("lease_ttl = 10", f"freeze_limit = {seconds}"))
        scene.reloading.signalled()
    scene.run_until(lambda: len(scene.events) == 3)
    assert scene.reloading.limits.freeze == 3 * SECOND


def test_systemd_hears_of_no_reload_before_the_daemon_was_ready(tmp_path: Path) -> None:
    """READY=1 would say that it serves."""
    loop, told = Loop(), list[str]()
    notifier = Notifier(loop, lambda text: told.append(text) is None, 0, lambda: "", lambda: "joining")
    notifier.reloading()
    notifier.reloaded()
    loop.close()
    assert [text for text in told if not text.startswith("STATUS=")] == []


def test_every_section_is_compared(tmp_path: Path) -> None:
    """Each key of each section that is not live needs a restart: none is overlooked."""
    path = tmp_path / "x.toml"
    path.write_text(FENCED)
    config = configuration.load(path)
    for section in (field.name for field in dataclasses.fields(Config) if field.name != "path"):
        values = getattr(config, section)
        for key in (field.name for field in dataclasses.fields(values)):
            changed = dataclasses.replace(config, **{section: dataclasses.replace(values, **{key: object()})})
            planned = plan(config, changed)
            live = section in ELSEWHERE or key in LIVE.get(section, ())
            assert (planned.applied if live else planned.needs_restart) == (f"[{section}] {KEYS.get(key, key)}",)
            assert planned.config == (changed if live else config)


def test_the_page_says_which_keys_are_live() -> None:
    """docs/configuration.md marks each key that may change in a running daemon, and no other."""
    text = (ROOT / "docs/configuration.md").read_text()
    for section in ("volume", "node", "lockspace", "export", "metrics", "fencing"):
        body = text.partition(f"## [{section}]")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \| .*?\| (live|restart) \|", body, re.MULTILINE)
        assert len(rows) == len(re.findall(r"^\| `", body, re.MULTILINE)), section
        live = {key for names, when in rows if when == "live" for key in re.findall(r"`([a-z_]+)`", names)}
        assert live == LIVE.get(section, frozenset()) - {"options", "hosts"}, section
