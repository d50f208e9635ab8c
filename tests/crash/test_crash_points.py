"""Power fails at every moment of random work: whatever the devices then hold, nothing is lost and the snapshot stays.

Every write and flush of one or two whole hosts is recorded. For each moment, each subset of the sectors that were on
their way (every one, up to 12; sampled above) is opened by the store as after a take-over. The oracle:

- every entry that some host knew to be committed is there; none that was never on its way; none twice
- every copy that an entry points to is the chunk's content of the moment the snapshot was taken
- no chunk of the origin without an entry may differ from the snapshot, whichever of its sectors have arrived
- every write of the origin that a client flushed is there
- after the take-over nothing lies behind the list, and appending over the old end brings nothing to life

CSNAP_SOAK=<seconds> tries new seeds for so long; CSNAP_SEED=<number> begins there (a failure names its seed).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from snapd.exstore.persistent import Persistent
from snapd.format.layout import Layout
from snapd.volume.copyout import CopyOuts
from snapd.volume.request import FLUSH
from snapd.volume.routing import Router
from tests.crash.battery import KEEP, LIMIT, SAMPLES, SMALL, battery
from tests.crash.history import Shape, fresh, record
from tests.crash.oracle import Figures, Trial

FIRST = int(os.environ.get("CSNAP_SEED", "1"))
SOAK = float(os.environ.get("CSNAP_SOAK", "0"))
SEEDS = 6
HISTORIES = 2
REQUESTS = 50


@pytest.mark.timeout(SOAK + 240)
def test_power_may_fail_at_every_moment() -> None:
    """One of each shape, fresh and begun on what a failure left; more with CSNAP_SOAK."""
    total = Figures()
    seed, end = FIRST, time.monotonic() + SOAK
    while seed < FIRST + SEEDS or time.monotonic() < end:
        try:
            figures, _ = battery(seed, HISTORIES, REQUESTS)
        except AssertionError as error:
            raise AssertionError(f"CSNAP_SEED={seed}: {error}") from error
        total.add(figures)
        seed += 1
    print(f"\ncrash points, {seed - FIRST} seeds: {total}, failures 0")
    assert total.moments > 1000 and total.images > 20_000 and total.recoveries and total.stale and total.volumes


@pytest.mark.parametrize("seed", range(2))
def test_power_may_fail_while_a_full_device_is_invalidated(seed: int) -> None:
    """The COW device overflows: valid=0 is there from its FUA write on, not before it was asked for, and until then
    the snapshot is whole."""
    shape = Shape(cow=30)
    history = record(shape, fresh(shape, random.Random(seed)), 1 + seed, seed, 40)
    assert history.invalidated is not None
    trial = Trial(history, seed, LIMIT, SAMPLES, KEEP)
    trial.run()


@pytest.mark.parametrize("seed", range(3))
def test_power_may_fail_while_the_snapshot_is_written(seed: int) -> None:
    """A writable snapshot beside the origin: each of its sectors is the old one or one that was written to it, what its
    clients flushed is there, and whole-chunk writes, which copy nothing, are as safe as copies."""
    history = record(SMALL, fresh(SMALL, random.Random(seed)), 1 + seed % 2, seed, 80, writable=True)
    assert history.kept and len(history.entries) > 20
    trial = Trial(history, seed, 10, SAMPLES, KEEP)
    trial.run()
    print(f"\nwritable: {trial.figures}")


# ---- the oracle has teeth


def trial_of(seed: int, shape: Shape = SMALL, requests: int = 110, writable: bool = False) -> None:
    history = record(shape, fresh(shape, random.Random(seed)), 2, seed, requests, writable)
    Trial(history, seed, 4, 5, KEEP).run()


def no_flush_before_entries(patch: pytest.MonkeyPatch) -> None:
    """Entries are written while their copies are still volatile."""

    def run(self: Persistent, writes: Any, done: Callable[[Any], None]) -> None:
        def step(index: int, error: int) -> None:
            if index < len(writes):
                where, offset, length = writes[index]
                self._engine.write(self._device, where, length, offset, step, index + 1)
            else:
                done(None)

        step(0, 0)

    patch.setattr(Persistent, "_run", run)


def no_fua_on_entries(patch: pytest.MonkeyPatch) -> None:
    """Entries are acknowledged while they are volatile."""
    original = Persistent._flushed

    def flushed(self: Persistent, *arguments: Any) -> None:
        write = self._engine.write

        def without(device: Any, where: int, length: int, offset: int, done: Any, arg: Any, fua: bool = False) -> None:
            write(device, where, length, offset, done, arg)

        self._engine.write = without  # type: ignore[method-assign]
        try:
            original(self, *arguments)
        finally:
            self._engine.write = write  # type: ignore[method-assign]

    patch.setattr(Persistent, "_flushed", flushed)


def next_area_is_not_zeroed(patch: pytest.MonkeyPatch) -> None:
    """A list that fills an area runs on into what lies behind it."""
    original = Persistent._run

    def run(self: Persistent, writes: Any, done: Any) -> None:
        appending = len(writes) == 1 and writes[0][0] == self._zeros
        original(self, [] if appending else writes, done)

    patch.setattr(Persistent, "_run", run)


def tail_is_not_zeroed(patch: pytest.MonkeyPatch) -> None:
    """A take-over leaves what lies behind the list."""
    patch.setattr(Persistent, "take_over", lambda self, done: done(None))


def origin_is_written_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """The origin's write goes ahead while the chunk is still being copied out."""
    original = Router._write_origin

    def write(self: Router, part: Any) -> None:
        stack = self._volume.stack
        if stack and all(chunk in stack[0].copies for chunk in self._missing(part, stack[0])):
            self._submit(part, [(self._volume.origin, part.offset, part.where, part.length)], write=True)
        else:
            original(self, part)

    patch.setattr(Router, "_write_origin", write)


def copies_are_not_awaited(patch: pytest.MonkeyPatch) -> None:
    """Entries are committed beside the write of their copies."""

    def write(self: CopyOuts, run: Any) -> None:
        device = run[0].snapshot.device
        wheres = [copy.where for copy in run]
        self._engine.write_gather(device, wheres, self._chunk_bytes, run[0].new * self._chunk_bytes, _nothing, run)
        self._written(run, 0)

    patch.setattr(CopyOuts, "_write", write)


def _nothing(arg: Any, error: int) -> None:
    """A completion nobody waits for."""


def snapshot_writes_are_not_flushed(patch: pytest.MonkeyPatch) -> None:
    """A flush of the snapshot goes to the origin."""
    original = Router.route

    def route(self: Router, part: Any) -> None:
        if part.request.operation == FLUSH:
            part.left = part.error = 0
            self._volume.engine.flush(self._volume.origin, self._done, part)
        else:
            original(self, part)

    patch.setattr(Router, "route", route)


def metadata_is_handed_out(patch: pytest.MonkeyPatch) -> None:
    """CVE-2013-4299: the next free chunk is not moved over an area."""
    patch.setattr(Layout, "data_chunk_from", lambda self, chunk: max(chunk, 2))
    patch.setattr(Layout, "run_of_data_chunks", lambda self, chunk: max(0, self.capacity - self.ordinal(chunk)))


EXPECTED = {
    "no_flush_before_entries": "is not its copy",
    "no_fua_on_entries": "that were committed",
    "next_area_is_not_zeroed": "stale tail|out of nowhere|does not open",
    "tail_is_not_zeroed": "a stale tail is left",
    "origin_is_written_before_the_commit": "may have been overwritten",
    "copies_are_not_awaited": "a buffer changed|is not its copy",
    "metadata_is_handed_out": "is a metadata area",
    "snapshot_writes_are_not_flushed": "a flushed write of the snapshot",
}


@pytest.mark.parametrize(
    "mutation",
    [
        no_flush_before_entries,
        no_fua_on_entries,
        next_area_is_not_zeroed,
        tail_is_not_zeroed,
        origin_is_written_before_the_commit,
        copies_are_not_awaited,
        metadata_is_handed_out,
        snapshot_writes_are_not_flushed,
    ],
)
def test_the_oracle_sees_a_broken_store(mutation: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Each way to break the order of a copy-out is found within a few seeds: else silence would mean nothing."""
    with pytest.MonkeyPatch.context() as patch:
        mutation(patch)
        with pytest.raises(AssertionError, match=EXPECTED[mutation.__name__]):
            for seed in range(6):
                if mutation is next_area_is_not_zeroed:  # the take-over has zeroed the second: the third is needed
                    trial_of(seed, Shape(origin=150, cow=230), 260)
                else:
                    trial_of(seed, writable=mutation is snapshot_writes_are_not_flushed)
