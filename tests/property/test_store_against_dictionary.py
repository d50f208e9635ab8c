"""The persistent store against a dictionary: copies, power losses in the middle, failing writes, reloads.

Chunks of 1 KiB, so that an area is two blocks of 32 entries: batches tear, areas fill, the device fills.
"""

from __future__ import annotations

import random
from errno import EIO

from hypothesis import given, settings
from hypothesis import strategies as st

from snapd.blockdev.memory import WRITE, MemoryArena, MemoryDevice, MemoryEngine
from snapd.errors import CsnapError, StoreFull
from snapd.exstore.base import StatusKind, StoreConfig
from snapd.exstore.check import check
from snapd.exstore.image import Image
from snapd.exstore.persistent import Persistent
from snapd.format.header import Header
from snapd.units import KIB, SECTOR
from tests.support import examples as _examples  # noqa: F401

CHUNK = KIB
ORIGIN_CHUNKS = 500
BUFFERS = 24


def old_content(old: int) -> bytes:
    """What the origin held in chunk ``old``."""
    return (b"old" + old.to_bytes(5, "little")) * (CHUNK // 8)


class Host:
    """One incarnation: an engine, a store, buffers for copies."""

    def __init__(self, device: MemoryDevice) -> None:
        arena = MemoryArena(256 * KIB)
        self.engine = MemoryEngine(arena)
        self.device = device
        image, zeros = arena.allocate(CHUNK), arena.allocate(CHUNK)
        self.buffers = [arena.allocate(CHUNK) for _ in range(BUFFERS)]
        config = StoreConfig(self.engine, device, CHUNK // SECTOR, ORIGIN_CHUNKS, image, zeros)
        self.store = Persistent(config)

    def load(self, limit: int | None = None) -> list[CsnapError | None]:
        errors: list[CsnapError | None] = []
        self.store.reread(limit, errors.append)
        self.engine.drain()
        return errors

    def load_as_new_writer(self) -> None:
        assert self.load() == [None]
        errors: list[CsnapError | None] = []
        self.store.take_over(errors.append)
        self.engine.drain()
        assert errors == [None]


class World:
    """durable: exceptions that were called back as durable. open: handed out, nothing heard yet or failed."""

    def __init__(self, chunks: int, stale: int) -> None:
        self.durable: dict[int, int] = {}
        self.order: list[int] = []
        self.open: dict[int, int] = {}
        self.device = MemoryDevice(chunks * CHUNK)
        self.device.poke(0, bytes([stale]) * self.device.size)
        header = Header(True, CHUNK // SECTOR).to_bytes()
        self.device.poke(0, header.ljust(CHUNK, b"\0") + bytes(CHUNK))
        self.host = Host(self.device)
        self.host.load_as_new_writer()
        self.reader = Host(self.device)  # another host; it picks up deltas

    def fill(self, count: int, rng: random.Random) -> None:
        """Copy so many chunks, one batch after another."""
        while count > 0:
            self.copy(min(count, BUFFERS), rng)
            self.host.engine.drain()
            count -= BUFFERS

    def copy(self, count: int, rng: random.Random) -> None:
        """Start copies of chunks that have no exception; each is committed when its data is written."""
        host = self.host
        free = [old for old in range(ORIGIN_CHUNKS) if old not in self.durable and old not in self.open]
        for old in rng.sample(free, min(count, len(host.buffers), len(free))):
            try:
                new = host.store.prepare(old)
            except StoreFull:
                store = host.store
                assert store.layout.ordinal(max(store.next_free, store.reserved_until)) == store.layout.capacity
                return
            except CsnapError:
                assert host.store.broken is not None
                return
            assert new not in self.durable.values() and new not in self.open.values()
            where = host.buffers.pop()
            host.engine.arena.view[where : where + CHUNK] = old_content(old)
            self.open[old] = new
            host.engine.write(self.device, where, CHUNK, new * CHUNK, self.copied, (host, where, old, new))

    def copied(self, arg: tuple[Host, int, int, int], error: int) -> None:
        host, where, old, new = arg
        host.buffers.append(where)
        if not error:
            host.store.commit(old, new, lambda durable: self.committed(old, new, durable))

    def committed(self, old: int, new: int, durable: bool) -> None:
        if durable:
            assert self.open.pop(old) == new
            self.durable[old] = new
            self.order.append(old)

    def complete(self, steps: int | None) -> None:
        """Let so many operations complete (None: all). The middle of a batch is a state like any other."""
        if steps is None:
            self.host.engine.drain()
            return
        for _ in range(steps):
            self.host.engine.kick()
            self.host.engine.reap_one()

    def lose_power(self, in_a_commit: bool, rng: random.Random) -> None:
        """What runs is applied in part, what is volatile is kept, dropped or torn.

        in_a_commit: some copies more, and not before the entries of a batch are being written.
        """
        if in_a_commit:
            self.copy(BUFFERS, rng)
        self.host.engine.kick()
        while in_a_commit and not self.committing(2 if rng.random() < 0.7 else 1) and self.host.engine.reap_one():
            self.host.engine.kick()
        for operation in self.host.engine._running:
            if operation.kind == WRITE and not operation.error and rng.random() < 0.9:
                view = self.host.engine.arena.view
                data = b"".join(bytes(view[where : where + operation.piece]) for where in operation.wheres)
                self.device.write(operation.offset, data, False)
        self.device.power_loss(rng)

    def committing(self, blocks: int) -> bool:
        """Whether entries are being written, to so many blocks of an area at least."""
        is_metadata = self.host.store.layout.is_metadata
        writes = [each for each in self.host.engine._running if each.kind == WRITE and each.piece >= blocks * SECTOR]
        return any(is_metadata(each.offset // CHUNK) for each in writes)

    def begin_anew(self) -> None:
        """Another incarnation takes over: it finds what was durable, and nothing that was never begun."""
        self.host = Host(self.device)
        self.host.load_as_new_writer()
        found = dict(self.host.store.map.items())
        for old, new in self.durable.items():
            assert found.pop(old, None) == new, f"chunk {old}: an exception that was durable is gone"
        for old, new in found.items():
            assert self.open.get(old) == new, f"chunk {old}: an exception out of nowhere"
        entries = Image.load(self.device.peek, self.device.size).exceptions
        self.order = [old for old, _ in entries]
        self.durable = dict(entries)
        self.open.clear()
        report = check(self.device.peek, self.device.size, ORIGIN_CHUNKS * CHUNK)
        assert report.problems == [], [str(problem) for problem in report.problems]

    def verify(self) -> None:
        """The map is the dictionary and its data is there; another host reads as far as the counter says."""
        store = self.host.store
        assert store.count == len(store.map) == len(self.durable)
        for old, new in self.durable.items():
            assert store.lookup(old) == new and self.device.peek(new * CHUNK, CHUNK) == old_content(old)
        assert all(store.lookup(old) == 0 for old in self.open)
        assert self.reader.load(len(self.order)) == [None]
        assert dict(self.reader.store.map.items()) == self.durable
        limit = len(self.order) * 2 // 3
        reader = Host(self.device)
        assert reader.load(limit) == [None]
        assert dict(reader.store.map.items()) == {old: self.durable[old] for old in self.order[:limit]}
        if not self.host.engine.inflight:
            assert store.status(StatusKind.INFO) == Image.load(self.device.peek, self.device.size).status


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[tuple[int, int | None]], int | None, str, int]:
    """Of one incarnation: its copies and how far each gets, where a write fails, whether power is lost, a seed."""
    works = st.tuples(st.integers(1, BUFFERS), st.one_of(st.none(), st.integers(1, 3 * BUFFERS)))
    faults = st.sampled_from([None, None, None, 2 * CHUNK, CHUNK, CHUNK + SECTOR])
    power = st.sampled_from(["goes now", "goes in a commit", "stays"])
    return draw(st.lists(works, min_size=1, max_size=6)), draw(faults), draw(power), draw(st.integers(0, 1 << 32))


@settings(max_examples=200)
@given(
    chunks=st.sampled_from([3, 66, 67, 68, 160, 600, 600]),
    stale=st.sampled_from([0, 0xAA, 1]),
    before=st.sampled_from([0, 1, 20, 25, 30, 60, 63, 64, 90, 120, 127]),
    incarnations=st.lists(lives(), min_size=1, max_size=6),
)
def test_the_store_is_a_dictionary_that_survives(
    chunks: int,
    stale: int,
    before: int,
    incarnations: list[tuple[list[tuple[int, int | None]], int | None, str, int]],
) -> None:
    """What was called durable is there for ever, what was not is there with its data or not at all."""
    world = World(chunks, stale)
    world.fill(before, random.Random(before))
    for works, fault, power, seed in incarnations:
        rng = random.Random(seed)
        if fault is not None:
            world.host.engine.fail(world.device, WRITE, EIO, fault, 1)
        for count, steps in works:
            world.copy(count, rng)
            world.complete(steps)
            world.verify()
        if power != "stays":
            world.lose_power(power == "goes in a commit", rng)
        else:
            world.host.engine.drain()
        world.begin_anew()
        world.verify()
