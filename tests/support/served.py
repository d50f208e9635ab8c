"""An origin with known content behind a real worker process, on disks of either block size."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapd.messages import SnapshotSpec
from snapd.units import KIB, MIB
from tests.support.disks import attached, can_attach
from tests.support.worker_process import WorkerProcess, make_cow

SIZE = 12 * MIB
COW_SIZE = 32 * MIB


@dataclass(frozen=True)
class Shape:
    """What the disks look like. block 4096: loop devices of that logical block, root only."""

    block: int
    chunk: int
    size: int = SIZE

    def __str__(self) -> str:
        return f"block-{self.block}-chunk-{self.chunk // KIB}K"


def shapes() -> list[Shape]:
    """Return the shapes that can be had here."""
    found = [Shape(512, 4 * KIB), Shape(512, 16 * KIB)]
    if can_attach():
        found += [Shape(4096, 16 * KIB), Shape(4096, MIB)]
    return found


class Served:
    """A worker, its disks, and what a snapshot taken now would show (``content`` at the start)."""

    def __init__(self, directory: Path, shape: Shape, stack: ExitStack) -> None:
        self.directory = directory
        self.shape = shape
        self._stack = stack
        self.content = random.Random(7).randbytes(shape.size)
        self.origin_file = directory / "origin"
        self.origin_file.write_bytes(self.content)
        self.worker = stack.enter_context(
            WorkerProcess(directory, self._disk(self.origin_file), shape.chunk, region=MIB)
        )

    def _disk(self, file: Path) -> str:
        if self.shape.block == 512:
            return str(file)
        return self._stack.enter_context(attached(str(file), self.shape.block))

    def snapshot(self, name: str = "s1", writable: bool = False) -> SnapshotSpec:
        """Take a snapshot online, on a COW device of the same kind as the origin."""
        file = self.directory / f"cow-{name}"
        with open(file, "wb") as made:
            made.truncate(COW_SIZE)
        spec = make_cow(self._disk(file), name, self.shape.size, self.shape.chunk, 0, writable)
        self.worker.take(spec)
        return spec

    def uri(self, export: str = "origin") -> str:
        return f"nbd+unix:///{export}?socket={self.worker.socket}"

    def fetch(self, export: str) -> bytes:
        """Return the whole content of an export, by nbdcopy."""
        result = subprocess.run(["nbdcopy", self.uri(export), "-"], check=True, capture_output=True)
        return result.stdout


@contextmanager
def served(directory: Path, shape: Shape) -> Iterator[Served]:
    with ExitStack() as stack:
        yield Served(directory, shape, stack)


def run(*command: str, input: str | None = None) -> str:
    """Run a client; return what it prints. Raises AssertionError with all it said if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, input=input, timeout=120)
    assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout
