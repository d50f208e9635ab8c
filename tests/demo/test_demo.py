"""The demo as a newcomer runs it, and what it leaves behind when it is interrupted: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.host import ROOT
from tests.support.etcd_server import wait_for

LIMIT = 60.0  # seconds, as promised
CLEANUP_LIMIT = 20.0


class Demo:
    """``python -m demo`` whose temporary directory is made in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._output = directory / "output"
        self.place = directory / "t"
        self.place.mkdir()
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "demo"],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self.place)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def output(self) -> str:
        return self._output.read_text()

    def processes(self) -> list[str]:
        """Return the command lines of everything that was started in its directory and still runs."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.place) in command:
                found.append(command)
        return found

    def left_nothing(self) -> bool:
        return not self.processes() and not list(self.place.iterdir())


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    one = Demo(tmp_path)
    yield one
    print(one.output())
    if one.process.poll() is None:
        one.process.terminate()
        one.process.wait(CLEANUP_LIMIT)


def test_demo(demo: Demo) -> None:
    """It ends with 0 within a minute, says that its fencing is unsafe and what was shown, and leaves nothing."""
    begun = time.monotonic()
    assert demo.process.wait(2 * LIMIT) == 0, demo.output()
    assert time.monotonic() - begun < LIMIT
    lines = demo.output().splitlines()
    assert any("unsafe" in line for line in lines)
    assert lines[-4] == "Shown:"
    assert "\x1b" not in demo.output()
    assert "WRONG" not in demo.output()
    assert demo.left_nothing()


@pytest.mark.parametrize(
    ("moment", "number"),
    [("etcd at", signal.SIGTERM), ("two daemons", signal.SIGINT), ("read on both hosts while", signal.SIGINT)],
)
def test_interrupted(demo: Demo, moment: str, number: signal.Signals) -> None:
    """Interrupted early, before the writers or under them, it ends soon and leaves no process and no directory."""
    wait_for(lambda: moment in demo.output(), moment, LIMIT)
    begun = time.monotonic()
    demo.process.send_signal(number)
    assert demo.process.wait(CLEANUP_LIMIT) == 130
    assert time.monotonic() - begun < CLEANUP_LIMIT
    assert demo.left_nothing(), (demo.processes(), list(demo.place.iterdir()))
    assert "Traceback" not in demo.output()
