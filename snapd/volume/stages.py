"""Where the time of a slow request goes: stamps of the parts that leave the fast path, a record when it is answered.

A part that runs to its end at once has no timeline and costs nothing here. One that waits, or copies, gets one when it
first does; it covers the request's whole time from its arrival on, each moment in exactly one of ``trace.STAGES``. What
is noted of a request is the timeline of the part that was stamped last: nothing is counted twice, and the stages add
up to what the client waited. A request without one was on the device all the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from snapd import trace
from snapd.clock import Clock
from snapd.trace import COMMIT, IO, KEPT_FROM, LEASE, QUEUED, READ_OLD, SPACE, TAIL, UNDER_WAY, WRITE_COW
from snapd.volume.request import READ, WRITE, Request
from snapd.volume.snapshot import Snapshot

if TYPE_CHECKING:
    from snapd.volume.copyout import Copy
    from snapd.volume.part import Part
    from snapd.volume.volume import Volume

LOOKED_AT = 4096
"""Unanswered requests that a tick looks at, at most, for those that are old: they are in the order of their arrival."""


_NOTHING = [0] * len(trace.STAGES)


class Timeline:
    """``spent`` ns in each stage up to ``since``; from then on in ``stage``. What was waited for last."""

    __slots__ = ("region", "since", "snapshot", "spent", "stage")

    def __init__(self, since: int, stage: int) -> None:
        self.since = since
        self.stage = stage
        self.spent = _NOTHING.copy()
        self.region = -1
        self.snapshot: Snapshot | None = None

    def copy(self) -> Timeline:
        """Two parts of a request have its past in common."""
        copy = Timeline(self.since, self.stage)
        copy.spent[:] = self.spent
        copy.region, copy.snapshot = self.region, self.snapshot
        return copy

    def until(self, stage: int, now: int) -> None:
        """What lies between the last stamp and ``now`` was ``stage``."""
        if now > self.since:
            self.spent[stage] += now - self.since
            self.since = now

    def leave(self, now: int) -> None:
        """The stage that it is in ends; a wait for space was one for the tail until that was granted."""
        if self.stage == SPACE and self.snapshot is not None:
            self.until(TAIL, min(now, self.snapshot.tail_granted))
        self.until(self.stage, now)


class Stages:
    """``page`` is set by who has one; ``clock`` as everywhere."""

    def __init__(self, clock: Clock) -> None:
        self.page: trace.Page | None = None
        self.threshold = KEPT_FROM  # ns
        self._clock = clock
        self._stalled = (0, 0)  # the last time without a lease: from, to (0: it lasts)

    def enter(self, part: Part, stage: int, was: int = QUEUED) -> Timeline:
        """The part is in ``stage`` from now on. ``was``: where it has been if this is its first stamp."""
        now = self._clock()
        timeline, request = part.timeline, part.request
        if timeline is None:
            before = request.timeline
            timeline = part.timeline = Timeline(request.started or now, was) if before is None else before.copy()
        request.timeline = timeline
        if timeline.stage == SPACE:
            timeline.leave(now)
        else:
            timeline.spent[timeline.stage] += now - timeline.since
            timeline.since = now
        timeline.stage = stage
        return timeline

    def wait_region(self, part: Part, region: int) -> None:
        """It is about to wait for the region's lock."""
        self.enter(part, trace.REGION).region = region

    def wait_space(self, part: Part, snapshot: Snapshot | None) -> None:
        """It is about to wait until a store, or a copy buffer, can serve it."""
        timeline = self.enter(part, SPACE)
        timeline.snapshot = snapshot or timeline.snapshot

    def queued(self, request: Request) -> None:
        """The request came to be started late: its payload took time."""
        request.timeline = Timeline(request.started, QUEUED)
        request.timeline.leave(self._clock())
        request.timeline.stage = IO

    def copied(self, copy: Copy, now: int) -> None:
        """A copy has ended, well or not: its parts were, since they came to it, where it was."""
        for part in copy.parts:
            timeline = part.timeline
            if timeline is not None:
                timeline.snapshot = copy.snapshot
                _follow(timeline, copy, now)

    def stalled(self, stalled: bool) -> None:
        """The lease's deadline has passed, or stands again."""
        now = self._clock()
        self._stalled = (now, 0) if stalled else (self._stalled[0], now)

    # ---- records

    def slow(self, request: Request, error: int) -> None:
        """The request is answered, and took longer than what is asked for."""
        now = self._clock()
        if self.page is not None:
            self.page.note(self._record(request, error, now, request.timeline))

    def tick(self, requests: Iterable[Request], volume: Volume) -> None:
        """Write down which requests are not answered yet though slow, and what their like uses."""
        if self.page is None:
            return
        now = self._clock()
        records: list[list[int]] = []
        for request, _ in zip(requests, range(LOOKED_AT), strict=False):
            if not request.started:
                continue  # answered
            if now - request.started < self.threshold or len(records) == trace.SIZES[UNDER_WAY]:
                break
            timeline = request.timeline.copy() if request.timeline is not None else None
            if timeline is None and request.operation == WRITE and not request.left:
                timeline = Timeline(request.started, QUEUED)  # its payload is not all here: the volume has not got it
            if timeline is not None and timeline.stage in (READ_OLD, COMMIT):
                for copy in (each for snapshot in volume.stack for each in snapshot.copies.values()):
                    if any(part.timeline is request.timeline for part in copy.parts):
                        timeline.snapshot = copy.snapshot
                        _follow(timeline, copy, now)
                        break
            records.append(self._record(request, 0, now, timeline))
        self.page.under_way(records)
        stores = ((each, each.store) for each in volume.stack)
        tails = [trace.half(each.spec.store) for each, store in stores if store is not None and not store.idle]
        self.page.used(now, volume.running, volume.regions.used(trace.REGIONS_MOST), tails)
        self.page.set_threshold(self.threshold)

    def _record(self, request: Request, error: int, now: int, timeline: Timeline | None) -> list[int]:
        if timeline is None:
            timeline = Timeline(request.started, IO)
        if timeline.stage == IO and request.operation != READ:
            begun, ended = self._stalled  # without the lease no write is handed over
            timeline.until(IO, min(now, begun))
            if timeline.since >= begun:
                timeline.until(LEASE, min(now, ended or (now if begun else 0)))
        timeline.leave(now)
        export, snapshot = request.export, timeline.snapshot
        return [
            now,
            now - request.started,
            request.operation | error << 8,
            request.offset,
            request.length,
            trace.half(export.spec.store) if isinstance(export, Snapshot) else 0,
            timeline.region + 1,
            trace.half(snapshot.spec.store) if snapshot is not None else 0,
            timeline.stage,
            *timeline.spent,
        ]


def _follow(timeline: Timeline, copy: Copy, now: int) -> None:
    """Divide the time since the last stamp by the stamps of the copy; ``stage`` becomes the copy's."""
    store = copy.snapshot.store
    granted = copy.snapshot.tail_granted if store is None or store.tail else now  # not yet
    steps = (
        (READ_OLD, copy.read),
        (WRITE_COW, copy.written),
        (COMMIT, copy.committing),  # earlier reads of the chunk end
        (TAIL, max(granted, copy.committing)),
        (COMMIT, now),
    )
    since, spent = timeline.since, timeline.spent
    for stage, until in steps:
        if not until or until > now:
            until = now
        if until > since:
            spent[stage] += until - since
            since = until
        if until == now:
            break
    timeline.stage, timeline.since = stage, since
