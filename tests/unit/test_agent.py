"""Fencing by an agent: what it is told, what counts as done, and what nobody gets to see."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest

from snapd.errors import CsnapError
from snapd.lockspace.fencing.agent import Agent, AgentFailed, AgentSettings, run_agent
from snapd.lockspace.records import MemberRecord
from snapd.messages import Message

SECRET = "hunter2-hunter2"


def record(node: str = "host-b", incarnation: str = "i-1") -> MemberRecord:
    return MemberRecord(node, "fencing", "machine", "boot", incarnation, "/lock", "", "")


def script(tmp_path: Path, body: str) -> str:
    path = tmp_path / "fence_test"
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


class Effects:
    """Records what it is told, and by which thread."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, dict[str, object]]] = []
        self.observed: list[tuple[str, dict[str, str]]] = []
        self.threads: set[int] = set()

    def send(self, message: Message) -> None: ...
    def set_deadline(self, deadline: int) -> None: ...
    def state(self, state: str, why: str) -> None: ...
    def failed(self, error: CsnapError) -> None: ...

    def log(self, priority: int, event: str, fields: dict[str, object]) -> None:
        self.threads.add(threading.get_ident())
        self.logged.append((event, fields))

    def observe(self, name: str, labels: dict[str, str], value: int) -> None:
        self.threads.add(threading.get_ident())
        self.observed.append((name, labels))


class Owner:
    """The owner's thread: runs what is posted, until a condition holds."""

    def __init__(self) -> None:
        self.effects = Effects()
        self._posted: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def agent(self, settings: AgentSettings) -> Agent:
        return Agent(settings, self.effects, self._posted.put, pauses=(0.01, 0.02))

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._posted.get(timeout=20)()


def test_the_agent_reads_options_then_the_host_then_action_and_nodename(tmp_path: Path) -> None:
    """Key=value lines on standard input; the host's entry wins; nothing in the arguments."""
    agent = script(tmp_path, 'cat > input; echo "$#" > arguments')
    settings = AgentSettings(
        agent, 10, {"login": "admin", "password": SECRET, "lanplus": "1"}, {"host-b": {"ip": "10.9.0.2", "login": "op"}}
    )
    run_agent(settings, "host-b")
    lines = (tmp_path / "input").read_text().splitlines()
    assert sorted(lines) == sorted(
        ["action=off", "login=op", f"password={SECRET}", "lanplus=1", "ip=10.9.0.2", "nodename=host-b"]
    )
    assert (tmp_path / "arguments").read_text() == "0\n"


def test_the_action_can_be_configured(tmp_path: Path) -> None:
    """``action = "reboot"`` in the options replaces "off"."""
    settings = AgentSettings(script(tmp_path, "cat > input"), 10, {"action": "reboot"}, {})
    run_agent(settings, "host-c")  # a node without an entry is tried with the options alone
    assert (tmp_path / "input").read_text() == "action=reboot\nnodename=host-c\n"


def test_a_failure_is_retried_until_it_succeeds_loudly(tmp_path: Path) -> None:
    """Twice exit code 1, then 0: two failures logged and counted, done called once, in the owner's thread."""
    agent = script(tmp_path, 'cat > /dev/null; echo x >> tries; echo "no power"; [ $(wc -l < tries) -ge 3 ]')
    owner, done = Owner(), []
    owner.agent(AgentSettings(agent, 10, {}, {})).fence(record(), lambda: done.append(threading.get_ident()))
    assert not done
    owner.run_until(lambda: bool(done))
    assert done == [threading.get_ident()]
    assert owner.effects.threads == {threading.get_ident()}
    failures = [fields for event, fields in owner.effects.logged if event == "fence_failed"]
    assert [fields["attempt"] for fields in failures] == [1, 2]
    assert "exit code 1: no power" in str(failures[0]["error"])
    assert owner.effects.observed[0] == (
        "fence_events_total",
        {"target": "host-b", "method": "agent", "result": "failed"},
    )


def test_fencing_again_what_is_fenced_runs_nothing(tmp_path: Path) -> None:
    """The same incarnation is not switched off twice, while it is being fenced or after; a new one is."""
    owner, done = Owner(), []
    agent = owner.agent(AgentSettings(script(tmp_path, "cat > /dev/null; echo x >> tries"), 10, {}, {}))
    for _ in range(2):
        agent.fence(record(), lambda: done.append(1))
    owner.run_until(lambda: len(done) == 2)
    agent.fence(record(), lambda: done.append(1))
    assert len(done) == 3
    assert (tmp_path / "tries").read_text() == "x\n"
    agent.fence(record(incarnation="i-2"), lambda: done.append(1))
    owner.run_until(lambda: len(done) == 4)
    assert (tmp_path / "tries").read_text() == "x\nx\n"


def test_an_agent_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    """After the timeout the attempt has failed; what the agent started is killed too, so its pipe closes."""
    with pytest.raises(AgentFailed, match=r"no end within 0.3 s"):
        run_agent(AgentSettings(script(tmp_path, "sleep 60 & sleep 60"), 0.3, {}, {}), "host-b")


def test_an_agent_that_is_not_there_is_named() -> None:
    """A wrong path fails like everything else: by name, and again and again."""
    with pytest.raises(AgentFailed, match=r"/nowhere/fence_x: cannot be started: No such file"):
        run_agent(AgentSettings("/nowhere/fence_x", 1, {}, {}), "host-b")


def test_secrets_are_in_no_log(tmp_path: Path) -> None:
    """An agent that prints what it was told gives nothing away, and neither does the settings' repr."""
    settings = AgentSettings(script(tmp_path, "cat; exit 1"), 10, {"password": SECRET}, {})
    with pytest.raises(AgentFailed) as caught:
        run_agent(settings, "host-b")
    assert "password=<password>" in str(caught.value)
    assert SECRET not in str(caught.value) and SECRET not in repr(settings)


def test_nothing_is_tried_after_close(tmp_path: Path) -> None:
    """A daemon that ends leaves fencing to whoever takes over."""
    owner = Owner()
    agent = owner.agent(AgentSettings(script(tmp_path, "cat > /dev/null; echo x >> tries; exit 1"), 10, {}, {}))
    agent.fence(record(), lambda: pytest.fail("done"))
    owner.run_until(lambda: bool(owner.effects.logged))
    agent.close()
    for thread in threading.enumerate():
        if thread.name == "fence-host-b":
            thread.join(10)
            assert not thread.is_alive()


def test_a_forgotten_host_is_tried_no_more(tmp_path: Path) -> None:
    """Somebody confirmed that it is off: the attempt that runs is the last one, and nothing is reported done."""
    owner = Owner()
    path = script(tmp_path, "echo x >> tries; exit 1")
    agent = owner.agent(AgentSettings(path, 20, {}, {}))
    done: list[bool] = []
    agent.fence(record(), lambda: done.append(True))
    owner.run_until(lambda: len(owner.effects.logged) >= 2)
    agent.forget(record())
    threads = [thread for thread in threading.enumerate() if thread.name == "fence-host-b"]
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and not done
