"""Several workers over shared devices, in an order that a seed chooses: no snapshot ever changes."""

from __future__ import annotations

import random

import pytest

from snapd.format.layout import ENTRY_BYTES
from snapd.volume.request import READ, WRITE, ZERO
from tests.support.worker_rig import CHUNK, Host, Rig


class World:
    """Issues random requests, and knows what every snapshot must read."""

    def __init__(self, seed: int, hosts: int, cow_chunks: int) -> None:
        self.rng = random.Random(seed)
        self.rig = Rig(hosts=hosts, origin_chunks=32, region_chunks=8, seed=seed, copy_buffers=3)
        self.cow_chunks = cow_chunks
        self.truth: dict[str, bytearray] = {}
        self.written: dict[int, set[bytes]] = {}
        self.outstanding = 0
        self.stamp = 0
        self.reads = 0

    def take(self, name: str) -> None:
        """Take a snapshot while requests are under way; what it must read is the origin of the drained moment."""
        spec = self.rig.format(name, self.cow_chunks)

        def change() -> None:
            self.rig.locks.take(spec)
            self.truth[name] = bytearray(self.rig.origin.data)

        self.rig.locks.change_table(self.rig.hosts[0].name, change)

    def some_request(self) -> None:
        host = self.rng.choice(self.rig.hosts)
        if not host.buffers:
            return
        offset = self.rng.randrange(0, 32 * CHUNK - 512, 512)
        length = min(self.rng.choice([512, CHUNK, 3 * CHUNK + 512, 16 * CHUNK]), 32 * CHUNK - offset)
        live = [export for export in host.volume.exports() if export.name[9:] in self.truth]
        self.outstanding += 1
        if live and self.rng.random() < 0.5:
            self.read_snapshot(host, self.rng.choice(live), offset, length)
        else:
            self.write_origin(host, offset, length)

    def read_snapshot(self, host: Host, export: object, offset: int, length: int) -> None:
        name = export.name[9:]  # type: ignore[attr-defined]
        expected = bytes(self.truth[name][offset : offset + length])

        def done(error: int, data: bytes) -> None:
            self.outstanding -= 1
            if error == 0:
                self.reads += 1
                assert data == expected, f"{host.name}: {name} changed at {offset}"
            else:
                spec = next(spec for spec in self.rig.locks.snapshots if spec.name == name)
                assert spec.state == "invalid", f"error {error} from a snapshot that is {spec.state}"

        host.submit(export, READ, offset, length, done)  # type: ignore[arg-type]

    def write_origin(self, host: Host, offset: int, length: int) -> None:
        self.stamp += 1

        def done(error: int, _: bytes) -> None:
            self.outstanding -= 1
            assert error == 0, "an origin writer saw an error"

        export = host.export("origin")
        if self.rng.random() < 0.2:
            host.submit(export, ZERO, offset, length, done)
        else:
            host.submit(export, WRITE, offset, self.stamp.to_bytes(4, "little") * (length // 4), done)

    def crash(self) -> None:
        """A host dies: its requests are never answered, its un-completed I/O is lost."""
        host = self.rig.hosts[-1]
        self.outstanding = 0
        for other in self.rig.hosts[:-1]:
            while other.volume.running or other.port.inbox or other.engine.inflight:
                if not self.rig.step():
                    break
        self.rig.crash(host)

    def verify(self) -> None:
        self.rig.run()
        states = {spec.name: spec.state for spec in self.rig.locks.snapshots}
        for name, truth in self.truth.items():
            if states[name] == "active":
                for host in self.rig.hosts:
                    assert self.rig.read_all(host, f"snapshot/{name}") == bytes(truth), f"{host.name}: {name}"
                check_list(self.rig, name)


def check_list(rig: Rig, name: str) -> None:
    """No old or new chunk twice, every new chunk a data chunk, in what lies on the COW device."""
    device = rig.devices[f"cow-{name}"]
    olds, news = set(), set()
    for index in range(CHUNK // ENTRY_BYTES):
        entry = device.peek(CHUNK + index * ENTRY_BYTES, ENTRY_BYTES)
        old, new = int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little")
        if not new:
            break
        assert old not in olds and new not in news and new % 257 != 1
        olds.add(old)
        news.add(new)


def play(seed: int, hosts: int, cow_chunks: int, crash: bool) -> World:
    world = World(seed, hosts, cow_chunks)
    taken = 0
    for turn in range(400):
        if turn in (40, 160) or (turn == 250 and not crash):
            taken += 1
            world.take(f"s{taken}")
        if crash and turn == 220:
            world.crash()
        if world.rng.random() < 0.4:
            world.some_request()
        for _ in range(world.rng.randrange(6)):
            world.rig.step()
    world.rig.run()
    if not crash:
        assert world.outstanding == 0, "a request was never answered"
    world.verify()
    return world


@pytest.mark.parametrize("seed", range(40))
def test_no_snapshot_changes_while_three_hosts_write(seed: int) -> None:
    """Three hosts write and read at random, snapshots are taken online: every read is of the moment of its taking."""
    assert play(seed, hosts=3, cow_chunks=64, crash=False).reads > 10


@pytest.mark.parametrize("seed", range(20))
def test_a_full_cow_device_invalidates_and_never_fails_the_origin(seed: int) -> None:
    """The COW device is too small: the snapshot becomes invalid everywhere, no origin write fails or hangs."""
    world = play(seed, hosts=2, cow_chunks=8, crash=False)
    assert any(spec.state == "invalid" for spec in world.rig.locks.snapshots)


@pytest.mark.parametrize("seed", range(20))
def test_a_crashed_host_leaves_every_snapshot_unchanged(seed: int) -> None:
    """A host dies with copies under way and is recovered: the others go on, no snapshot changed."""
    play(seed, hosts=3, cow_chunks=64, crash=True)
