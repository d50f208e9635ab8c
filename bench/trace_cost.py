"""What following slow requests costs: the same requests with and without it, and what a stamp and a record cost.

    python -m bench.trace_cost [--rw read|write] [--depth 16] [--batches 3000] [--runs 5]

The first part is bench.metrics_cost with another piece taken out: what a request pays that is not slow. The second part
times the calls that only some make: entering a stage (a request that waits or copies), following a copy (its end), and
a record (one that is slow).
"""

from __future__ import annotations

import sys
import timeit

from bench import metrics_cost
from snapd import trace
from snapd.clock import boottime
from snapd.messages import SnapshotSpec
from snapd.trace import IO, REGION, Page
from snapd.volume.copyout import Copy
from snapd.volume.part import Part
from snapd.volume.request import WRITE, Request
from snapd.volume.snapshot import OriginExport, Snapshot
from snapd.volume.stages import Stages

REMOVED: tuple[tuple[str, str, str], ...] = (
    (
        "nbd/transmission.py",
        "        if desk.now - request.started >= desk.slow:\n            desk.on_slow(request, error)\n",
        "",
    ),
    (
        "volume/request.py",
        "        self.timeline: Any = None  # of the volume: stages.Timeline, once a part has left the fast path\n",
        "",
    ),
    (
        "volume/part.py",
        "        self.timeline: Timeline | None = None  # since it left the fast path\n",
        "",
    ),
)


def calls() -> None:
    """Print the microseconds of a call of each."""
    stages = Stages(boottime)
    stages.page = Page(memoryview(bytearray(trace.PAGE_BYTES)).cast("Q"))
    request = Request(OriginExport(1 << 30, 512, 16384), WRITE, 0, 4096, (), False, lambda request, error: None)
    request.started = boottime()
    part = Part(request, 0, 4096, 0)

    def first() -> None:
        request.timeline = part.timeline = None
        stages.enter(part, REGION)

    spec = SnapshotSpec("s1", "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11", "/dev/cow", "active", False, 1)
    copy = Copy(Snapshot(spec, 1 << 30, 512, 16384), 0, 2, 0, 0, boottime())
    copy.parts.append(part)

    def copied() -> None:
        copy.read = boottime()
        copy.written = boottime()
        copy.committing = copy.written
        stages.copied(copy, boottime())

    for name, call in (
        ("the first stage of a request", first),
        ("another stage", lambda: stages.enter(part, IO)),
        ("a copy, with the clocks that it looks at", copied),
        ("a record", lambda: stages.slow(request, 0)),
    ):
        count = 20_000
        best = min(timeit.repeat(call, number=count, repeat=7)) / count * 1e6
        print(f"{name}: {best:.2f} us")


def main() -> int:
    metrics_cost.REMOVED = REMOVED
    calls()
    return metrics_cost.main()


if __name__ == "__main__":
    sys.exit(main())
