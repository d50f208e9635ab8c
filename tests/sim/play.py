"""One history: clients on every host, operators, faults; then everything heals, and a last look at all of it.

What a client hears is judged at once: data by the oracle, errors by whether anything excuses them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from snapd.units import KIB, SECOND, SECTOR
from snapd.volume.request import FLUSH, READ, WRITE, ZERO
from snapd.volume.snapshot import Snapshot
from tests.sim.faults import GENTLE, MENU, MILLI, Faults
from tests.sim.oracle import LIVE, Violation, stamped
from tests.sim.worker import SLOT, Worker
from tests.sim.world import Shape, World

HEALED_LIMIT = 120 * SECOND
"""After the last fault everybody is active and every request answered within this much virtual time."""

BEGIN_LIMIT = 30 * SECOND


@dataclass(frozen=True, slots=True)
class Result:
    """What a history did."""

    seed: int
    requests: int
    snapshots: int
    snapshot_reads: int
    entries: int
    faults: tuple[str, ...]
    begun: int
    fences: int
    power_losses: int
    digest: tuple[int, ...]


class History:
    """See the module. ``kinds`` and ``fencing`` override what the seed chooses."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None, kinds: list[str] | None, fencing: str) -> None:
        rng = random.Random(seed)
        shape = Shape(
            hosts=rng.choice((2, 2, 3, 3, 4)),
            fencing=rng.choice(("pr", "pr", "off", "off", "deadline")),
            ttl=rng.choice((2, 3, 4)),
            copy_buffers=rng.choice((2, 8, 32)),
        )
        if fencing:
            shape = replace(shape, fencing=fencing)
        menu = GENTLE if shape.fencing == "deadline" else tuple(MENU)
        chosen = rng.sample(menu, rng.choice((0, 1, 2, 3, 5)))
        self.world = World(seed, shape, trace)
        self.rng = self.world.rng
        self.faults = Faults(self.world, chosen if kinds is None else kinds)
        self.oracle = self.world.oracle
        self.pending: dict[object, Worker] = {}
        self.requests = self.taken = 0
        self.sectors = self.world.origin.size // SECTOR
        self.hot_width = self.rng.choice((4, 16, 64))
        self.hot = self.rng.randrange(self.sectors - self.hot_width)
        self.patience = self.rng.choice((0.03, 0.03, 0.15))  # the share of long waits between requests

    # ---- the history

    def play(self) -> Result:
        world, rng = self.world, self.rng
        self._until("everybody is active", self._all_active, BEGIN_LIMIT)
        operations = rng.randrange(80, 220)
        if self.faults.kinds and rng.random() < 0.4:
            self.faults.noise = 0.05
        for _ in range(operations):
            dice = rng.random()
            if dice < 0.035:
                self._operate()
            elif dice < 0.075 and self.faults.kinds:
                self.faults.begin()
            else:
                self._request()
            self._wait()
        self.faults.heal()
        self._until("everybody is active, and everything answered", self._all_well, HEALED_LIMIT)
        self._last_look()
        return Result(
            world.seed,
            self.requests,
            self.taken,
            self.oracle.snapshot_reads,
            self.oracle.entries,
            tuple(self.faults.kinds),
            self.faults.begun,
            world.fences,
            world.power_losses,
            world.digest(),
        )

    def _wait(self) -> None:
        rng = self.rng
        dice = rng.random()
        if dice < 0.75:
            length = rng.randrange(400_000)
        elif dice < 1 - self.patience:
            length = rng.randrange(10 * MILLI)
        else:
            length = rng.randrange(2 * SECOND)
        self.world.scheduler.run_for(length)

    def _until(self, what: str, reached: Callable[[], bool], limit: int) -> None:
        scheduler = self.world.scheduler
        end = scheduler.now() + limit
        while not reached():
            if scheduler.now() >= end:
                raise Violation(f"never: {what}: {self._state()}")
            scheduler.run_for(5 * MILLI)

    def _all_active(self) -> bool:
        return all(
            host.up and host.control is not None and host.control.member.state == "active"
            for host in self.world.hosts.values()
        )

    def _all_well(self) -> bool:
        return self._all_active() and not self._waiting()

    def _waiting(self) -> list[object]:
        return [request for request, worker in self.pending.items() if worker.alive]

    def _state(self) -> str:
        hosts = {
            node: (host.up, host.control.member.state if host.control else "", host.worker.volume.stalled)
            for node, host in self.world.hosts.items()
            if host.worker is not None
        }
        return f"{hosts}, {len(self._waiting())} requests wait: {self._waiting()[:3]}"

    # ---- operators

    def _operate(self) -> None:
        host = self.faults.some_host()
        control = host.control
        if control is None or not control.active or control.commanding:
            return
        records = self.oracle.records
        if records and (self.rng.random() < 0.3 or len(records) >= 4):
            name = self.rng.choice(sorted(records))
            control.run(lambda: control.delete(name))
        else:
            self.taken += 1
            used = {record["path"] for record in records.values()}
            free = [path for path in self.world.disks if path != "origin" and path not in used]
            if free:
                name, path = f"s{self.taken}", self.rng.choice(free)
                control.run(lambda: control.create(name, path))

    # ---- clients

    def _request(self) -> None:
        rng = self.rng
        host = self.faults.some_host()
        worker = host.worker
        exports = worker.exports() if worker is not None and worker.alive else []
        if worker is None or not exports or worker.outstanding >= 12:
            return
        export: Any = rng.choice(exports) if rng.random() < 0.4 else exports[0]
        dice = rng.random()
        if isinstance(export, Snapshot) or dice < 0.15:
            self._read(worker, export, *self._place())
        elif dice < 0.22:
            self._flush(worker, export)
        else:
            first, count = self._place()
            zero = dice < 0.30 and self.oracle.may_zero(first, count)
            self._write(worker, export, first, count, zero, rng.random() < 0.1)

    def _place(self) -> tuple[int, int]:
        rng = self.rng
        count = rng.choice((1, 1, 2, 2, 3, 8, 24, SLOT // SECTOR))
        low, high = (self.hot, self.hot + self.hot_width) if rng.random() < 0.5 else (0, self.sectors)
        first = rng.randrange(low, max(low + 1, high - count))
        return first, min(count, self.sectors - first)

    def _begin(self, worker: Worker, what: str) -> object:
        self.requests += 1
        token = f"{what} #{self.requests} on {worker.host.node}"
        self.pending[token] = worker
        self.world.note(worker.host.node, "<-", request=token)
        return token

    def _answered(self, token: object, error: int) -> None:
        worker = self.pending.pop(token)
        self.world.note(worker.host.node, "->", request=token, error=error)

    def _write(self, worker: Worker, export: Any, first: int, count: int, zero: bool, fua: bool) -> None:
        write = self.oracle.write(first, count, zero, fua)
        token = self._begin(worker, f"write {first}+{count} {write.number:#x}")

        def answer(error: int, data: bytes) -> None:
            self._answered(token, error)
            if error:
                self._excuse(worker, token, write.begun, error)
            else:
                self.oracle.written(write)

        if zero:
            worker.request(export, ZERO, first * SECTOR, count * SECTOR, fua, answer)
        elif not worker.request(export, WRITE, first * SECTOR, stamped(write.number, first, count), fua, answer):
            self.pending.pop(token)

    def _read(self, worker: Worker, export: Any, first: int, count: int) -> None:
        begun = self.world.scheduler.now()
        token = self._begin(worker, f"read {export.name} {first}+{count}")
        snapshot = export if isinstance(export, Snapshot) else None
        name = snapshot.spec.name if snapshot is not None else ""
        store = snapshot.spec.store if snapshot is not None else ""

        def answer(error: int, data: bytes) -> None:
            self._answered(token, error)
            if error and snapshot is not None:
                self._excuse_snapshot(worker, token, begun, error, store)
            elif error:
                self._excuse(worker, token, begun, error)
            elif snapshot is not None:
                self.oracle.snapshot_read(worker.host.node, name, store, first, data)
            else:
                self.oracle.read(worker.host.node, first, data, begun)

        if not worker.request(export, READ, first * SECTOR, count * SECTOR, False, answer):
            self.pending.pop(token)

    def _flush(self, worker: Worker, export: Any) -> None:
        begun = self.world.scheduler.now()
        token = self._begin(worker, "flush")

        def answer(error: int, data: bytes) -> None:
            self._answered(token, error)
            if error:
                self._excuse(worker, token, begun, error)
            else:
                self.oracle.flushed(begun)

        worker.request(export, FLUSH, 0, 0, False, answer)

    def _excuse(self, worker: Worker, token: object, begun: int, error: int) -> None:
        """Nobody answers an error to a client of the origin, but who is fenced, ends, or met the disk's own."""
        ending = worker.way.fenced or worker.exit is not None or worker.stopping_since
        if not ending and self.faults.struck.get(worker.host.node, -1) < begun:
            raise Violation(f"error {error} without an excuse: {token}")

    def _excuse_snapshot(self, worker: Worker, token: object, begun: int, error: int, store: str) -> None:
        for record in self.oracle.records.values():
            if record["store"] == store and record["state"] in LIVE:
                if not any(cow.hurt for cow in self.oracle.cows.values()):
                    self._excuse(worker, token, begun, error)
                return

    # ---- the last look

    def _last_look(self) -> None:
        """Every host writes in every region and reads everything; the devices say the same."""
        world = self.world
        region = world.shape.region // SECTOR
        for round_ in ("write", "read"):
            for host in world.hosts.values():
                worker = host.worker
                assert worker is not None
                origin, *snapshots = worker.exports()
                for first in range(0, self.sectors, region):
                    if round_ == "write":
                        self._write(worker, origin, first + self.rng.randrange(region), 1, False, False)
                    else:
                        for export in (origin, *snapshots):
                            self._read(worker, export, first, region)
                            if len(worker.slots) < 4:
                                self._until("everything is answered", self._all_well, HEALED_LIMIT)
                self._until("everything is answered", self._all_well, HEALED_LIMIT)
        self.oracle.check_registers()
        self.oracle.check_raw()


assert Shape().region <= SLOT == 16 * KIB


def play(
    seed: int, trace: Callable[[str], None] | None = None, kinds: list[str] | None = None, fencing: str = ""
) -> Result:
    """Play one history. Raises Violation, or whatever else it finds."""
    return History(seed, trace, kinds, fencing).play()
