"""A stack of writable snapshots on several hosts, in an order that a seed chooses, with leases that come and go.

Every sector of every level has one writer, so what a read may show is known to the byte: what was acknowledged when
the read began, or anything written since. Taken, written, read and dropped while requests are under way.
"""

from __future__ import annotations

import random

import pytest

from snapd.volume.request import FLUSH, READ, WRITE, ZERO
from tests.support.worker_rig import CHUNK, Host, Rig

SECTOR = 512
PER_CHUNK = CHUNK // SECTOR
CHUNKS = 24


class Level:
    """What the sectors of one export have been: all values in order, the last ``pending`` of them not acknowledged."""

    def __init__(self, content: bytes) -> None:
        self.values = [[content[at : at + SECTOR]] for at in range(0, len(content), SECTOR)]
        self.pending = [0] * len(self.values)

    def settled(self, sector: int) -> int:
        """The place of the value that a read beginning now must at least show."""
        return len(self.values[sector]) - 1 - self.pending[sector]

    def content(self) -> bytes:
        return b"".join(values[-1] for values in self.values)


class World:
    """Chunks are written whole by one host, or sector by sector by all of them; which is the chunk's parity."""

    def __init__(self, seed: int, cow_chunks: int) -> None:
        self.rng = random.Random(seed)
        self.rig = Rig(hosts=3, origin_chunks=CHUNKS, region_chunks=4, seed=seed, copy_buffers=3)
        self.cow_chunks = cow_chunks
        self.levels = {"origin": Level(bytes(self.rig.origin.data))}
        self.names: list[str] = []  # newest first, as in the table
        self.outstanding = 0
        self.reads = 0
        self.stamp = 0

    def take(self) -> None:
        if self.rig.locks.table_op is not None or len(self.names) == 3:
            return
        self.stamp += 1
        name = f"s{self.stamp}"
        spec = self.rig.format(name, self.cow_chunks, writable=True)

        def change() -> None:
            self.rig.locks.take(spec)
            self.names.insert(0, name)
            self.levels[f"snapshot/{name}"] = Level(bytes(self.rig.origin.data))

        self.rig.locks.change_table(self.rig.hosts[0].name, change)

    def drop_oldest(self) -> None:
        if self.rig.locks.table_op is not None or not self.names:
            return
        name = self.names[-1]

        def change() -> None:
            locks = self.rig.locks
            locks.snapshots = [spec for spec in locks.snapshots if spec.name != name]
            self.names.remove(name)

        self.rig.locks.change_table(self.rig.hosts[0].name, change)

    def some_request(self) -> None:
        host = self.rng.choice(self.rig.hosts)
        exports = [export for export in host.volume.exports() if export.name in self.levels]
        export = self.rng.choice(exports)
        if len(host.buffers) < 2:
            return
        kind = self.rng.random()
        if kind < 0.45:
            self.read(host, export.name)
        elif kind < 0.5:
            self.outstanding += 1
            host.submit(export, FLUSH, 0, 0, lambda error, data: self.ended(export.name, error))
        else:
            self.write(host, export.name)

    def ended(self, name: str, error: int) -> None:
        self.outstanding -= 1
        if error:
            assert error == 5 and name != "origin", f"{name}: error {error}"
            state = {f"snapshot/{spec.name}": spec.state for spec in self.rig.locks.snapshots}.get(name, "dropped")
            assert state != "active", f"{name} is active and gives errors"

    def read(self, host: Host, name: str) -> None:
        level = self.levels[name]
        first = self.rng.randrange(CHUNKS * PER_CHUNK)
        count = min(self.rng.choice((1, PER_CHUNK, 3 * PER_CHUNK + 1)), CHUNKS * PER_CHUNK - first)
        since = [level.settled(sector) for sector in range(first, first + count)]
        self.outstanding += 1

        def done(error: int, data: bytes) -> None:
            self.ended(name, error)
            if not error:
                self.reads += 1
                for index in range(count):
                    shown = data[index * SECTOR : (index + 1) * SECTOR]
                    allowed = level.values[first + index][since[index] :]
                    assert shown in allowed, f"{host.name}: {name}, sector {first + index}"

        host.submit(host.export(name), READ, first * SECTOR, count * SECTOR, done)

    def write(self, host: Host, name: str) -> None:
        level, me = self.levels[name], self.rig.hosts.index(host)
        chunk = self.rng.randrange(CHUNKS)
        if chunk % 2:
            sectors = [chunk * PER_CHUNK + self.rng.randrange(PER_CHUNK // 3) * 3 + me]
        else:
            chunk = min(chunk // 6 * 6 + 2 * me, CHUNKS - 2)
            if (chunk // 2) % 3 != me:
                return
            sectors = list(range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK))
        if any(level.pending[sector] for sector in sectors):
            return
        self.stamp += 1
        zero = self.rng.random() < 0.2
        value = bytes(SECTOR) if zero else self.stamp.to_bytes(4, "little") * (SECTOR // 4)
        for sector in sectors:
            level.values[sector].append(value)
            level.pending[sector] = 1
        self.outstanding += 1

        def done(error: int, data: bytes) -> None:
            self.ended(name, error)
            for sector in sectors:
                level.pending[sector] = 0

        offset, length = sectors[0] * SECTOR, len(sectors) * SECTOR
        if zero:
            host.submit(host.export(name), ZERO, offset, length, done)
        else:
            host.submit(host.export(name), WRITE, offset, value * len(sectors), done)

    def toggle_lease(self) -> None:
        host = self.rng.choice(self.rig.hosts)
        host.lease = not host.lease
        host.turn()

    def settle(self) -> None:
        for host in self.rig.hosts:
            host.lease = True
            host.turn()
        self.rig.run()
        assert self.outstanding == 0, "a request was never answered"


def play(seed: int, cow_chunks: int) -> World:
    world = World(seed, cow_chunks)
    for turn in range(600):
        if turn in (60, 150, 240) or world.rng.random() < 0.004:
            world.take()
        if turn > 300 and world.rng.random() < 0.006:
            world.drop_oldest()
        if world.rng.random() < 0.02:
            world.toggle_lease()
        if world.rng.random() < 0.5:
            world.some_request()
        for _ in range(world.rng.randrange(6)):
            world.rig.step()
    world.settle()
    states = {spec.name: spec.state for spec in world.rig.locks.snapshots}
    for name in ["origin", *(f"snapshot/{name}" for name in world.names if states[name] == "active")]:
        for host in world.rig.hosts:
            assert world.rig.read_all(host, name) == world.levels[name].content(), f"{host.name}: {name}"
    return world


@pytest.mark.parametrize("seed", range(40))
def test_every_level_reads_as_it_was_written(seed: int) -> None:
    """Three hosts, up to three writable snapshots: no level shows a byte that is not its own."""
    world = play(seed, cow_chunks=64)
    assert world.reads > 20
    assert all(spec.state == "active" for spec in world.rig.locks.snapshots)


@pytest.mark.parametrize("seed", range(100, 115))
def test_small_cow_devices_cost_snapshots_and_nothing_else(seed: int) -> None:
    """Stores that run full take the older snapshots with them; the origin and what is still active stay right."""
    play(seed, cow_chunks=20)
