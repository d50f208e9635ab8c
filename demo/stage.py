"""Where the demo plays: a temporary directory and the processes started in it. Closing ends and removes them all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from demo.host import environment

STOP_LIMIT = 12.0  # seconds; csnap itself promises 10
KILL_LIMIT = 5.0


class StageError(Exception):
    """Something did not come up, or ended on its own."""


class Interrupts:
    """SIGINT and SIGTERM raise KeyboardInterrupt, once, and never while ``held``: no process gets lost."""

    def __init__(self) -> None:
        self._held = 0
        self._pending = False
        self._raised = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        self._look()

    def _look(self) -> None:
        if self._pending and not self._held and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal is only noted."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._look()

    def hold(self) -> None:
        """From now on signals are ignored: what follows is the cleaning up."""
        self._held += 1


def wait_until(condition: Callable[[], object], limit: float, what: str) -> None:
    """Look ten times a second; raise StageError when the time is over."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise StageError(f"not within {limit:.0f} s: {what}")
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started and that still run."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def runs(pid: int) -> bool:
    """Whether this process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _ended(pids: list[int], limit: float) -> bool:
    """Wait until none of them runs; False when the time is over."""
    end = time.monotonic() + limit
    while any(map(runs, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Stage:
    """A directory and the processes started in it, each in a group of its own: Ctrl-C hits only us."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.guard = interrupts.held
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.directory = Path(tempfile.mkdtemp(prefix="csnap-demo-"))

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process; what it says goes to ``log(name)``."""
        with self._interrupts.held(), open(self.log(name), "ab") as log:
            process = subprocess.Popen(
                command, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
            self._processes.append((name, process))
        return process

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def find(self, name: str) -> subprocess.Popen[bytes]:
        """Return the running process of this name."""
        return next(process for known, process in self._processes if known == name)

    def show_logs(self) -> None:
        """Print the end of every log, to standard error."""
        for log in sorted(self.directory.glob("*.log")):
            print(f"---- {log.stem}\n{self.tail(log.stem)}", file=sys.stderr)

    def check_alive(self) -> bool:
        """Raise StageError if a process has ended by itself; return True."""
        for name, process in self._processes:
            if process.poll() is not None:
                raise StageError(f"{name} ended with {process.returncode}:\n{self.tail(name)}")
        return True

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines of a log."""
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM, and SIGKILL for it and its children if that is not enough; return the exit code."""
        with self._interrupts.held():
            self._processes = [(name, one) for name, one in self._processes if one is not process]
            started = children(process.pid)
            process.terminate()
            try:
                return process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(KILL_LIMIT)
                raise StageError(f"process {process.args!r} did not stop within {STOP_LIMIT:.0f} s") from None
            finally:
                if not _ended(started, KILL_LIMIT):
                    for pid in filter(runs, started):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    _ended(started, KILL_LIMIT)

    def close(self) -> None:
        """End what runs, the youngest first, and remove the directory."""
        while self._processes:
            try:
                self.stop(self._processes[-1][1])
            except StageError as error:
                print(error)
        shutil.rmtree(self.directory, ignore_errors=True)
