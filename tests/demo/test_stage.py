"""The demo's stage: what was started is ended, whatever happens."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from demo import stage as module
from demo.stage import Interrupts, Stage, StageError, children, runs
from tests.support.etcd_server import wait_for

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """The demo's signal handlers; the test's own ones come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Interrupts()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_raised_once_and_not_while_held(interrupts: Interrupts) -> None:
    """A signal that comes while processes are started is raised right after it; cleaning up is not interrupted."""
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts.held():
        signal.raise_signal(signal.SIGTERM)
        steps.append("held")
    assert steps == ["held"]
    signal.raise_signal(signal.SIGINT)  # a second one


def test_closing_ends_everything(interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes, also those that they have started, and the directory are gone."""
    monkeypatch.setattr(module, "KILL_LIMIT", 0.2)
    stage = Stage(interrupts)
    process = stage.start("parent", [sys.executable, "-c", PARENT])
    wait_for(lambda: bool(children(process.pid)), "the child runs")
    (child,) = children(process.pid)
    stage.close()
    assert process.returncode == -signal.SIGTERM
    assert not runs(child)
    assert not stage.directory.exists()


def test_who_does_not_stop_is_killed(
    interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that ignores SIGTERM is killed, and that is said."""
    monkeypatch.setattr(module, "STOP_LIMIT", 0.2)
    stage = Stage(interrupts)
    process = stage.start("stubborn", [sys.executable, "-c", STUBBORN])
    wait_for(lambda: stage.log("stubborn").read_text() == "up\n", "it ignores SIGTERM")
    stage.close()
    assert process.returncode == -signal.SIGKILL
    assert "did not stop" in capsys.readouterr().out


def test_a_process_that_ends_is_noticed(interrupts: Interrupts) -> None:
    """Whoever ends by itself is named, with the end of what it said."""
    stage = Stage(interrupts)
    process = stage.start("short", [sys.executable, "-c", "print('why'); raise SystemExit(7)"])
    assert process.wait(10) == 7
    with pytest.raises(StageError, match=r"short ended with 7:\nwhy"):
        stage.check_alive()
    stage.close()
