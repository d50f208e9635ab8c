"""Clients of real daemons: writers that keep a history, and readers that look at a snapshot again and again.

They are threads of the test with a pause between two requests: on two cores the daemons must come to run too.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from demo.history import NEVER, Write, judge, stamp
from demo.nbd import PIECE, NbdClient, NbdError
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for

BLOCK = 4096
WRITE_PAUSE = 0.002  # seconds
READ_PAUSE = 0.05
PROGRESS_LIMIT = 30.0


class Worker(threading.Thread):
    """Does ``step`` with a client until stopped. A broken connection ends it, an error reply is kept in ``error``."""

    def __init__(self, path: Path, export: str, pause: float) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.error: BaseException | None = None
        self.gone = False
        self.export = export
        self._pause = pause
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            with NbdClient(self.path, self.export) as client:
                while not self._stopping.wait(self._pause):
                    self.step(client)
        except (ConnectionError, FileNotFoundError):
            self.gone = True
        except BaseException as error:
            self.error = error

    def step(self, client: NbdClient) -> None:
        raise NotImplementedError

    @property
    def answered(self) -> float:
        """When its last answer came; 0 if none did."""
        raise NotImplementedError

    def stop(self) -> None:
        """End at a request's boundary; raise what went wrong."""
        self._stopping.set()
        self.join(PROGRESS_LIMIT)
        assert not self.is_alive(), f"{self!r}: its last request is unanswered"
        if self.error is not None:
            raise self.error


class Writer(Worker):
    """Stamps random blocks of ``[first, last)``; ``writes`` is its journal, complete once it has ended."""

    def __init__(self, daemon: Daemon, export: str, number: int, first: int, last: int) -> None:
        super().__init__(daemon.socket, export, WRITE_PAUSE)
        self.writes: list[Write] = []
        self.longest = 0.0  # seconds that the slowest write took
        self._number = number
        self._blocks = (first, last)
        self._random = random.Random(number)

    def step(self, client: NbdClient) -> None:
        block, sequence = self._random.randrange(*self._blocks), len(self.writes)
        issued = time.monotonic()
        self.writes.append(Write(self._number, block, sequence, issued, NEVER))
        client.write(block * BLOCK, stamp(self._number, block, sequence, BLOCK))
        acknowledged = time.monotonic()
        self.writes[-1] = Write(self._number, block, sequence, issued, acknowledged)
        self.longest = max(self.longest, acknowledged - issued)

    @property
    def answered(self) -> float:
        return max((write.acknowledged for write in self.writes[-2:] if write.acknowledged < NEVER), default=0)


class Reader(Worker):
    """Reads a whole export again and again; it must always be ``expected``."""

    def __init__(self, daemon: Daemon, export: str, expected: bytes) -> None:
        super().__init__(daemon.socket, export, READ_PAUSE)
        self.rounds = 0
        self._expected = expected
        self._answered = 0.0

    @property
    def answered(self) -> float:
        return self._answered

    def step(self, client: NbdClient) -> None:
        pieces = []
        for at in range(0, client.size, PIECE):
            pieces.append(client.read(at, min(PIECE, client.size - at)))
            self._answered = time.monotonic()
        image = b"".join(pieces)
        if image != self._expected:
            at = next(at for at in range(len(image)) if image[at] != self._expected[at])
            raise AssertionError(f"{self.path} {self.export}: differs from byte {at} on")
        self.rounds += 1


class Traffic:
    """All clients of one test. Leaving its context stops them and raises the first error that one of them met."""

    def __init__(self, cluster: Hosts) -> None:
        self._cluster = cluster
        self._workers: list[Worker] = []
        self._history: list[Writer] = []
        self._images: list[tuple[bytes, float, float]] = []

    def __enter__(self) -> Traffic:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:  # the test's own failure is the one to be seen
            for worker in self._workers:
                worker._stopping.set()

    def write(self, daemon: Daemon, first: int, last: int, export: str = "origin") -> Writer:
        """Start a writer on ``daemon``."""
        writer = Writer(daemon, export, len(self._history), first, last)
        self._history.append(writer)
        self._start(writer)
        return writer

    def write_all(self, daemon: Daemon, export: str = "origin") -> Writer:
        """Start a writer of all blocks."""
        with NbdClient(daemon.socket, export) as client:
            blocks = client.size // BLOCK
        return self.write(daemon, 0, blocks, export)

    def write_everywhere(self, export: str = "origin") -> list[Writer]:
        """Start a writer of all blocks on each host."""
        return [self.write_all(host, export) for host in self._cluster]

    def read(self, daemon: Daemon, name: str, expected: bytes) -> Reader:
        """Start a reader of a snapshot."""
        reader = Reader(daemon, f"snapshot/{name}", expected)
        self._start(reader)
        return reader

    def read_everywhere(self, name: str, expected: bytes) -> list[Reader]:
        return [self.read(host, name, expected) for host in self._cluster]

    def _start(self, worker: Worker) -> None:
        self._workers.append(worker)
        worker.start()

    def go_on(self, *workers: Writer | Reader, count: int = 100, limit: float = PROGRESS_LIMIT) -> None:
        """Wait until each has made ``count`` more writes, or read one more whole image begun from now on."""

        def reached(worker: Writer | Reader, goal: int) -> bool:
            assert worker.error is None, worker.error
            assert not worker.gone, f"{worker.path}: the server is gone"
            return progress(worker) > goal

        goals = {worker: progress(worker) + (1 if isinstance(worker, Reader) else count) for worker in workers}
        for worker, goal in goals.items():
            wait_for(lambda worker=worker, goal=goal: reached(worker, goal), f"{worker} goes on", limit)  # type: ignore[misc]

    def stop(self) -> None:
        """Stop everybody."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker._stopping.set()
        for worker in workers:
            worker.stop()

    def end(self, worker: Worker) -> None:
        """Stop one of them."""
        self._workers.remove(worker)
        worker.stop()

    def forget(self, *workers: Worker, fenced: float = NEVER) -> None:
        """These are expected to have lost their server; at ``fenced`` at the latest it wrote nothing any more."""
        for worker in workers:
            worker.join(PROGRESS_LIMIT)
            assert worker.gone or (fenced < NEVER and isinstance(worker.error, NbdError)), worker.error
            self._workers.remove(worker)
            if isinstance(worker, Writer) and worker.writes and worker.writes[-1].acknowledged == NEVER:
                worker.writes[-1] = replace(worker.writes[-1], latest=fenced)

    def writes(self, export: str = "origin") -> list[Write]:
        """Return every write to this export."""
        return [write for writer in self._history if writer.export == export for write in writer.writes]

    def judge(self, image: bytes, began: float, returned: float, export: str = "origin") -> None:
        """The image is one of a moment between these two. To be asked when the writers have ended."""
        assert judge(image, BLOCK, self.writes(export), began, returned) == []

    def check_later(self, image: bytes, began: float, returned: float) -> None:
        """Judge this image too when the writers have ended, in ``judge_origin``."""
        self._images.append((image, began, returned))

    def judge_origin(self) -> None:
        """Everything acknowledged is there, on every host alike. To be asked when the writers have ended."""
        self.judge_now("origin")
        for image in self._images:
            self.judge(*image)

    def judge_now(self, export: str) -> None:
        """What every host shows of this export is the same, and has every write acknowledged."""
        images = [read_export(host, export) for host in self._cluster if host.process is not None]
        assert all(image == images[0] for image in images)
        now = time.monotonic()
        self.judge(images[0], now, now, export)


def progress(worker: Writer | Reader) -> int:
    return worker.rounds if isinstance(worker, Reader) else len(worker.writes)


def read_export(daemon: Daemon, export: str) -> bytes:
    """Return the whole content of an export."""
    with NbdClient(daemon.socket, export) as client:
        return client.read_all()


def take(daemon: Daemon, name: str, cow: Path) -> tuple[float, float]:
    """Take a snapshot; return when the command began and returned."""
    began = time.monotonic()
    daemon.csnap("snapshot", "create", "CONFIG", name, "--cow", cow)
    return began, time.monotonic()


def fails(action: Callable[[], object]) -> bool:
    """Whether an NBD request is answered with an error."""
    try:
        action()
    except NbdError:
        return True
    return False
