"""The trace page: the slow requests that the worker notes and the control process reads, also of a worker that hangs.

One shared page of 64-bit words, written by the worker alone. No content of any request is in it.

    kept        ring of the last requests that took KEPT_FROM or longer: what an incident leaves
    worst       of each WORST_SPAN of the last hour the few slowest of these: a long incident pushes its beginning out
                of ``kept``. Read whole: a record may be replaced while its span lasts
    live        ring of the last ones below KEPT_FROM which took as long as ``csnap trace --threshold`` asks for now
    under way   the oldest requests that are not answered yet, as of the last tick (4 a second)
    in use      regions and tails that I/O of this host uses, as of the last tick

A record's first and last word are its number in its ring, from 1 on; both are 0 while it is written. Who reads takes
it for torn unless both say what was expected, before and after.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapd.units import SECOND

STAGES = ("queued", "table", "lease", "region", "space", "read_old", "write_cow", "tail", "commit", "io")
QUEUED, TABLE, LEASE, REGION, SPACE, READ_OLD, WRITE_COW, TAIL, COMMIT, IO = range(len(STAGES))
"""Where a request's time goes, in the order of the path of a write:

    queued      received, not started: its payload is not all here, or the worker was busy
    table       the table is asked back or being loaded (a snapshot is taken, deleted, lost)
    lease       the deadline has passed: etcd does not answer
    region      waits for the lock of its region
    space       waits for COW chunks (reserved under the tail), a copy buffer, or a re-read
    read_old    the old content is read from the origin, or from a newer snapshot
    write_cow   it is written to the COW device
    tail        waits for the lock of the tail
    commit      earlier reads of the chunk end, flush, the exceptions are written
    io          the request's own operation on the device
"""

KEPT_FROM = SECOND // 10
"""Below it nobody calls an incident, and a busy disk would push the interesting ones out of the ring."""

(SEQUENCE, ENDED, TOOK, WHAT, OFFSET, LENGTH, EXPORT, LOCKED, STORE, STAGE, SPENT) = range(11)
AGAIN = SPENT + len(STAGES)
RECORD = AGAIN + 1
"""Words of a record. WHAT: operation and errno << 8. EXPORT, STORE: the first half of a store's UUID, 0: the origin, or
none. LOCKED: region waited for + 1, 0: none."""

KEPT, WORST, LIVE, UNDER_WAY = range(4)
WORST_OF = 4
WORST_SPAN = 10 * SECOND
SIZES = (1024, 3600 * SECOND // WORST_SPAN * WORST_OF, 2048, 16)

HEADS = 0  # four words: the highest number in each ring; of ``under way``: how many there are
THRESHOLD = 4  # in force, ns
TICKED = 5  # boottime ns of the last tick
RUNNING = 6  # parts and other uses of the table that run
REGIONS_USED, TAILS_USED = 7, 8  # how many follow
REGIONS_MOST, TAILS_MOST = 256, 16
REGIONS_AT = 9
TAILS_AT = REGIONS_AT + REGIONS_MOST
RINGS = tuple(TAILS_AT + TAILS_MOST + RECORD * sum(SIZES[:ring]) for ring in range(len(SIZES)))
WORDS = RINGS[UNDER_WAY] + SIZES[UNDER_WAY] * RECORD
PAGE_BYTES = -(-WORDS * 8 // 4096) * 4096


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times in ns of CLOCK_BOOTTIME; ``spent`` by STAGES; ``stage``: the last one, or that it is in."""

    sequence: int
    ended: int
    took: int
    operation: int
    error: int
    offset: int
    length: int
    export: int
    region: int  # -1: none was waited for
    store: int
    stage: int
    spent: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Used:
    """What I/O uses on this host: see the module."""

    ticked: int
    running: int
    regions: frozenset[int]
    tails: frozenset[int]


class Page:
    """The writer's end."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._span = -1
        self._worst: list[tuple[int, int]] = []  # of this span: took, number

    def note(self, record: Sequence[int]) -> None:
        """Write down a request: the words from ENDED to the last SPENT."""
        ended, took = record[:2]
        if took < KEPT_FROM:
            self._append(LIVE, record)
            return
        self._append(KEPT, record)
        span, worst = ended // WORST_SPAN, self._worst
        if span != self._span:
            self._span = span
            worst.clear()
        if len(worst) < WORST_OF:
            self._append(WORST, record)
            worst.append((took, head(self._words, WORST)))
        elif took > (least := min(worst))[0]:
            worst[worst.index(least)] = took, least[1]
            self._put(WORST, least[1], record)

    def _append(self, ring: int, record: Sequence[int]) -> None:
        head = self._words[HEADS + ring] + 1
        self._put(ring, head, record)
        self._words[HEADS + ring] = head

    def _put(self, ring: int, number: int, record: Sequence[int]) -> None:
        words = self._words
        at = RINGS[ring] + (number - 1) % SIZES[ring] * RECORD
        words[at] = words[at + AGAIN] = 0
        words[at + 1 : at + AGAIN] = memoryview(array("Q", record))
        words[at + AGAIN] = words[at] = number

    def under_way(self, records: Sequence[Sequence[int]]) -> None:
        """Replace the list of what is under way; at most SIZES[UNDER_WAY]."""
        for number, record in enumerate(records, 1):
            self._put(UNDER_WAY, number, record)
        self._words[HEADS + UNDER_WAY] = len(records)

    def used(self, now: int, running: int, regions: Sequence[int], tails: Sequence[int]) -> None:
        words = self._words
        words[RUNNING] = running
        for first, count, most, values in (
            (REGIONS_AT, REGIONS_USED, REGIONS_MOST, regions),
            (TAILS_AT, TAILS_USED, TAILS_MOST, tails),
        ):
            for index, value in enumerate(values[:most], first):
                words[index] = value
            words[count] = min(len(values), most)
        words[TICKED] = now

    def set_threshold(self, threshold: int) -> None:
        self._words[THRESHOLD] = threshold


def head(words: memoryview, ring: int) -> int:
    """The number of the ring's last record; 0: there is none."""
    return words[HEADS + ring]


def read(words: memoryview, ring: int, after: int = 0) -> Iterator[Record]:
    """The ring's records behind number ``after``, oldest first; those that are torn or overwritten are left out."""
    last = head(words, ring)
    for number in range(max(after, last - SIZES[ring]) + 1, last + 1):
        record = _read(words, ring, number)
        if record is not None:
            yield record


def _read(words: memoryview, ring: int, number: int) -> Record | None:
    at = RINGS[ring] + (number - 1) % SIZES[ring] * RECORD
    copy = words[at : at + RECORD].tolist()
    if not number == copy[0] == copy[AGAIN] == words[at] == words[at + AGAIN]:
        return None
    what = copy[WHAT]
    return Record(
        sequence=number,
        ended=copy[ENDED],
        took=copy[TOOK],
        operation=what & 0xFF,
        error=what >> 8,
        offset=copy[OFFSET],
        length=copy[LENGTH],
        export=copy[EXPORT],
        region=copy[LOCKED] - 1,
        store=copy[STORE],
        stage=min(copy[STAGE], len(STAGES) - 1),
        spent=tuple(copy[SPENT:AGAIN]),
    )


def used(words: memoryview) -> Used:
    """What is in use, as of the last tick."""
    regions, tails = words[REGIONS_USED], words[TAILS_USED]
    return Used(
        words[TICKED],
        words[RUNNING],
        frozenset(words[REGIONS_AT : REGIONS_AT + regions].tolist()),
        frozenset(words[TAILS_AT : TAILS_AT + tails].tolist()),
    )


def half(store: str) -> int:
    """A store's name in the page: the first half of its UUID, never 0."""
    return int(store.replace("-", "")[:16], 16) or 1
