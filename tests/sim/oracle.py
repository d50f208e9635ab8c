"""What is true in a history, and what must not be. Raises Violation; it sees everything and changes nothing.

Every 512-byte sector of the origin is a register; every write puts a value of its own into it, so a history of reads
and writes is linearizable exactly if the zones of its values do not clash (Gibbons and Korach, 1997):

    zone of a value    from the first answer of its write or of a read of it, to the last beginning of one
    forward            the first answer comes before the last beginning: the value holds all that time
    violated           two forward zones overlap, or what never holds (a backward zone) lies within a forward one

A write that was never answered, or failed, may happen at any time or never. A power loss of the array ends an epoch:
each sector keeps any value that no durable write has followed; from there on it is a new register.

A snapshot is the origin at the transaction that granted it. After a power loss of the array it is what origin and COW
device say then: a chunk that was not copied out may have fallen back together with the origin, never forward.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from snapd.errors import CsnapError, Fenced
from snapd.format.header import Header
from snapd.format.layout import ENTRY_BYTES, Layout
from snapd.format.sidecar import Sidecar
from snapd.lockspace.kv import Event
from snapd.messages import EX, NL, Grant
from snapd.units import SECTOR

if TYPE_CHECKING:
    from tests.sim.control import Control
    from tests.sim.disk import Disk
    from tests.sim.worker import Worker
    from tests.sim.world import World

NEVER = 1 << 62
WORDS = SECTOR // 8
PLACE_BITS = 16
LIVE = ("active", "overflow")


class Violation(AssertionError):
    """What csnap promises does not hold."""


def stamps(data: bytes | bytearray | memoryview) -> list[int]:
    """The value of each sector. A sector is written whole or not at all, so all its words are equal."""
    words = memoryview(data).cast("Q")
    first = words[::WORDS].tolist()
    if words[WORDS - 1 :: WORDS].tolist() != first:
        raise Violation("a sector is torn")
    return first


def stamped(number: int, first: int, count: int) -> bytes:
    """What write ``number`` puts into ``count`` sectors from ``first`` on."""
    return b"".join(
        [(number << PLACE_BITS | place).to_bytes(8, "little") * WORDS for place in range(first, first + count)]
    )


@dataclass(slots=True, eq=False)
class Write:
    """``zero``: its value is 0, so each sector is zeroed once in an epoch at most."""

    number: int
    first: int
    count: int
    begun: int
    zero: bool = False
    fua: bool = False
    answered: int = NEVER
    durable: bool = False


class Cow:
    """What lies on a COW device, as anybody would read it."""

    def __init__(self, disk: Disk, chunk: int) -> None:
        self.disk = disk
        self.layout = Layout(chunk // SECTOR, disk.size)
        self.hurt = False  # an operation on it failed, by our doing
        self.store = ""
        self.read_anew()

    def begin(self, store: str) -> None:
        self.store, self.hurt = store, False
        self.read_anew()

    def read_anew(self) -> None:
        """Forget what was seen."""
        self.entries: dict[int, int] = {}
        self.news: set[int] = set()
        self._raw = bytearray()

    def check_kept(self) -> None:
        """An entry that was visible stays."""
        layout = self.layout
        step = layout.epa * ENTRY_BYTES
        for area, first in enumerate(range(0, len(self._raw), step)):
            known = self._raw[first : first + step]
            at = layout.area_chunk(area) * layout.chunk_bytes
            if self.disk.data[at : at + len(known)] != known:
                raise Violation(f"{self.disk.path}: entries of area {area} have changed")

    def more(self) -> list[tuple[int, int]]:
        """Entries that have become visible behind those known."""
        layout, data, fresh = self.layout, self.disk.data, []
        count = len(self.entries)
        while True:
            area, slot = divmod(count, layout.epa)
            at = layout.area_chunk(area) * layout.chunk_bytes + slot * ENTRY_BYTES
            if at + ENTRY_BYTES > len(data):
                raise Violation(f"{self.disk.path}: the list has no end")
            new = int.from_bytes(data[at + 8 : at + 16], "little")
            if not new:
                return fresh
            old = int.from_bytes(data[at : at + 8], "little")
            if old in self.entries or new in self.news:
                raise Violation(f"{self.disk.path}: entry {count} ({old} -> {new}) uses a chunk twice")
            if not 1 < new < layout.total_chunks or layout.is_metadata(new):
                raise Violation(f"{self.disk.path}: entry {count} ({old} -> {new}) points outside the data")
            self.entries[old] = new
            self.news.add(new)
            self._raw += data[at : at + ENTRY_BYTES]
            fresh.append((old, new))
            count += 1


class Oracle:
    """See the module."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.per_chunk = world.shape.chunk // SECTOR
        self.cows = {path: Cow(disk, world.shape.chunk) for path, disk in world.disks.items() if path != "origin"}
        self.truth: dict[str, list[int]] = {}
        self.granted_at: dict[str, int] = {}
        self.records: dict[str, dict[str, object]] = {}  # by name, as etcd has them
        self.counters: dict[str, int] = {}
        self.overflows: dict[str, str] = {}
        self.condemned: set[str] = set()  # stores that somebody began to delete: their headers may say valid=0
        self.origin_hurt = False  # a read of it failed, by our doing
        self.numbers = 0
        self.writes: dict[int, Write] = {}
        self.reads = self.snapshot_reads = self.entries = self.hits_checked = 0
        self.begin_epoch([place + 1 << PLACE_BITS | place for place in range(world.origin.size // SECTOR)])
        for path, cow in self.cows.items():
            cow.disk.written = lambda offset, length, path=path: self._cow_written(path, offset, length)  # type: ignore[misc]
        world.origin.written = self._origin_written

    # ---- the origin

    def begin_epoch(self, values: list[int]) -> None:
        now = self.world.scheduler.now()
        self.base = values
        self.zones: list[dict[int, list[int]]] = [{value: [now, now]} for value in values]
        self.landed: list[dict[int, int]] = [{value: now} for value in values]  # value -> when it first took effect
        self.zeroed = {place for place, value in enumerate(values) if not value}
        self.epoch = now
        self.writes = {}

    def write(self, first: int, count: int, zero: bool, fua: bool) -> Write:
        self.numbers += 1
        number = self.numbers + 1000
        write = self.writes[number] = Write(number, first, count, self.world.scheduler.now(), zero, fua)
        for place in range(first, first + count):
            self.zones[place][0 if zero else number << PLACE_BITS | place] = [NEVER, write.begun]
        if zero:
            self.zeroed.update(range(first, first + count))
        return write

    def may_zero(self, first: int, count: int) -> bool:
        return self.zeroed.isdisjoint(range(first, first + count))

    def written(self, write: Write) -> None:
        """It was answered without an error."""
        if write.begun < self.epoch:
            raise Violation("an answer from before the power loss")
        now = write.answered = self.world.scheduler.now()
        write.durable = write.durable or write.fua
        for place in range(write.first, write.first + write.count):
            zone = self.zones[place][0 if write.zero else write.number << PLACE_BITS | place]
            zone[0] = min(zone[0], now)

    def flushed(self, begun: int) -> None:
        """A flush of the origin that began then was answered: whatever had been answered before is durable."""
        for write in self.writes.values():
            if write.answered < begun:
                write.durable = True

    def read(self, who: str, first: int, data: bytes, begun: int) -> None:
        now = self.world.scheduler.now()
        self.reads += 1
        for place, value in enumerate(stamps(data), first):
            zone = self.zones[place].get(value)
            if zone is None:
                raise Violation(f"{who} reads {value:#x} in sector {place} of the origin: nobody wrote that")
            zone[0] = min(zone[0], now)
            zone[1] = max(zone[1], begun)

    def _origin_written(self, offset: int, length: int) -> None:
        now, first = self.world.scheduler.now(), offset // SECTOR
        for place, value in enumerate(stamps(self.world.origin.data[offset : offset + length]), first):
            self.landed[place].setdefault(value, now)

    def check_registers(self) -> None:
        for place, values in enumerate(self.zones):
            if len(values) > 1:
                zones = {value: zone for value, zone in values.items() if zone[0] < NEVER}
                _check_zones(place, zones)

    # ---- what happens in etcd

    def changed(self, events: Iterable[Event]) -> None:
        if self.world.tracing:
            self._tell(events)
        for event in events:
            kind, _, name = event.kv.key[len(self.world.prefix) :].partition("/")
            if kind == "s":
                self._snapshot_changed(name, None if event.deleted else json.loads(event.kv.value))
            elif kind == "v" and not event.deleted:
                self._counted(name, event.kv.value)

    def _tell(self, events: Iterable[Event]) -> None:
        for event in events:
            kv, key = event.kv, event.kv.key[len(self.world.prefix) :]
            self.world.note("etcd", f"{kv.mod_revision}: {key} = {'gone' if event.deleted else kv.value[:40].decode()}")

    def _snapshot_changed(self, name: str, record: dict[str, object] | None) -> None:
        before = self.records.pop(name, None)
        if record is None:
            return
        self.records[name] = record
        store = str(record["store"])
        self.world.note("etcd", f"snapshot {name} is {record['state']}")
        if record["state"] == "deleting":
            self.condemned.add(store)
        if record["state"] == "active" and (before is None or before["state"] == "creating"):
            self.truth[store] = stamps(self.world.origin.data)
            self.granted_at[store] = self.world.scheduler.now()
            cow = self.cows[str(record["path"])]
            if cow.store != store or cow.more():
                raise Violation(f"snapshot {name} is granted over what is not its empty store")
        if record["state"] == "invalid" and before is not None and before["state"] != "invalid":
            self._invalidated(name, record)

    def _invalidated(self, name: str, record: dict[str, object]) -> None:
        """For a reason: it, or a newer one that it reads through, is full or has met an error."""
        place = record["place"]
        levels = [each for each in self.records.values() if each["place"] >= place]  # type: ignore[operator]
        for level in levels:
            cow = self.cows[str(level["path"])]
            full = "used or reserved" in self.overflows.get(str(level["store"]), "")
            if (
                cow.hurt
                or self.origin_hurt
                or level["store"] in self.condemned
                or (full and cow.disk.path in self.world.small)
            ):
                return
        reasons = {str(level["name"]): self.overflows.get(str(level["store"])) for level in levels}
        raise Violation(f"snapshot {name} is invalid without a reason: {reasons}")

    def _counted(self, store: str, value: bytes) -> None:
        if value == b"?":
            return
        count, before = int(value), self.counters.get(store, 0)
        if count < before:
            raise Violation(f"counter of {store} goes back from {before} to {count}")
        self.counters[store] = count
        cow = next((cow for cow in self.cows.values() if cow.store == store), None)
        if cow is not None and not cow.hurt and count > len(cow.entries):
            raise Violation(f"counter of {store} says {count}, its list has {len(cow.entries)}")

    # ---- COW devices

    def store_on(self, path: str) -> str:
        """The store that the sidecar names."""
        block = self.cows[path].disk.peek(0, SECTOR)
        try:
            header = Header.from_bytes(block)
            sidecar = Sidecar.from_bytes(block, header.chunk_size)
        except CsnapError:
            return ""
        return sidecar.store_uuid if sidecar is not None else ""

    def in_use(self, path: str) -> bool:
        """Whether a header that is valid says so."""
        try:
            return Header.from_bytes(self.cows[path].disk.peek(0, SECTOR)).valid
        except CsnapError:
            return False

    def formatted(self, path: str, store: str) -> None:
        for record in self.records.values():
            if record["path"] == path and record["state"] not in ("creating", "invalid") and record["store"] != store:
                raise Violation(f"{path}: formatted while snapshot {record['name']} lives there")
        self.cows[path].begin(store)

    def _cow_written(self, path: str, offset: int, length: int) -> None:
        cow = self.cows[path]
        first = offset // cow.layout.chunk_bytes
        if not cow.layout.is_metadata(first) or cow.store not in self.truth or not self.in_use(path):
            return
        if cow.hurt:
            return  # a write that failed may have left entries that nobody was told of, and that others write over
        cow.check_kept()
        for old, new in cow.more():
            self.entries += 1
            self._check_entry(cow, old, new)

    def _check_entry(self, cow: Cow, old: int, new: int) -> None:
        size, begin = cow.layout.chunk_bytes, old * self.per_chunk
        expected = self.truth[cow.store][begin : begin + self.per_chunk]
        found = stamps(cow.disk.data[new * size : (new + 1) * size])
        if found != expected:
            raise Violation(
                f"{cow.disk.path}: entry {old} -> {new} is visible over {_hex(found)}, expected {_hex(expected)}"
            )

    # ---- snapshots

    def stack(self) -> list[dict[str, object]]:
        """Live records, newest first."""
        live = [each for each in self.records.values() if each["state"] in (*LIVE, "deleting")]
        return sorted(live, key=lambda each: each["place"], reverse=True)  # type: ignore[arg-type, return-value]

    def content(self, record: dict[str, object]) -> list[int]:
        """What the snapshot is, by the raw devices."""
        values = stamps(self.world.origin.data)
        for level in self.stack():
            cow = self.cows[str(level["path"])]
            size = cow.layout.chunk_bytes
            for old, new in cow.entries.items():
                begin = old * self.per_chunk
                values[begin : begin + self.per_chunk] = stamps(cow.disk.data[new * size : (new + 1) * size])
            if level is record:
                break
        return values

    def check_raw(self) -> int:
        """Origin plus COW give every snapshot that is whole. Return how many there are."""
        stack = [each for each in self.stack() if self.in_use(str(each["path"]))]
        for record in stack:
            cow = self.cows[str(record["path"])]
            if cow.hurt:
                cow.read_anew()
            for old, new in cow.more():
                self._check_entry(cow, old, new)
        for record in stack:
            if all(self.in_use(str(each["path"])) for each in self.stack() if each["place"] >= record["place"]):  # type: ignore[operator]
                self._compare(
                    f"raw devices: {record['name']}", self.truth[str(record["store"])], 0, self.content(record)
                )
        return len(stack)

    def snapshot_read(self, who: str, name: str, store: str, first: int, data: bytes) -> None:
        self.snapshot_reads += 1
        self._compare(f"{who} reads {name}", self.truth[store], first, stamps(data))

    def _compare(self, what: str, truth: list[int], first: int, found: list[int]) -> None:
        expected = truth[first : first + len(found)]
        if found != expected:
            bad = next(index for index, value in enumerate(found) if value != expected[index])
            raise Violation(f"{what}: sector {first + bad} is {found[bad]:#x}, was {expected[bad]:#x}")

    # ---- locks

    def granted(self, worker: Worker, grant: Grant) -> None:
        """Between grant and release nobody else uses a region: nobody that may still act."""
        late = worker.way.fenced or worker.host.clock.now() >= worker.deadline
        if late or not grant.resource.startswith("region/"):
            return  # who was stopped may find an old grant when it wakes: it can do nothing with it any more
        region = int(grant.resource[7:])
        for host in self.world.hosts.values():
            for other in host.workers():
                if other is worker or not other.alive or other.way.fenced or other.exit is not None:
                    continue
                held = other.volume.regions.held(region)
                if held > NL and EX in (held, grant.mode) and host.clock.now() < other.deadline:
                    raise Violation(
                        f"{grant.resource}: {worker.host.node} is granted {grant.mode} while {host.node} holds {held}"
                    )

    def overflowed(self, worker: Worker, store: str, reason: str) -> None:
        self.overflows.setdefault(store, reason)
        self.world.note(worker.host.node, "overflow", store=store, reason=reason)

    def failed(self, control: Control, error: CsnapError) -> None:
        """Nobody ends itself whom nobody has recovered, unless it leaves its clients in the lurch anyway."""
        kv = self.world.etcd.store.live.get(f"{self.world.prefix}m/{control.host.node}")
        record = json.loads(kv.value) if kv is not None else {}
        mine = record.get("incarnation") == control.incarnation and record.get("state") == "active"
        if isinstance(error, Fenced) and mine and "still in use" not in str(error):
            raise Violation(f"{control.incarnation} ends itself, and nobody has recovered it: {error}")

    def left(self, control: Control) -> None:
        """A planned stop that says it was clean has left nothing; who was never a member may leave a record."""
        if not control.clean_stop or not control.member.session.since:
            return
        node = control.host.node
        mine = [
            key
            for key, kv in self.world.etcd.store.live.items()
            if kv.value == control.incarnation.encode() or key.endswith((f"/m/{node}", f"/a/{node}"))
        ]
        if mine:
            raise Violation(f"{node} left in order, but {mine[:3]} are there")

    # ---- power

    def power_lost(self) -> None:
        """The array was without power: what is there now is true from here on, if it may be."""
        now = self.world.scheduler.now()
        self.check_registers()
        values = stamps(self.world.origin.data)
        for place, value in enumerate(values):
            self._check_fallback(place, value)
        for cow in self.cows.values():
            cow.read_anew()
            if cow.store in self.truth and self.in_use(cow.disk.path):
                for old, new in cow.more():
                    self._check_entry(cow, old, new)
        for record in self.stack():
            store = str(record["store"])
            if not self.in_use(str(record["path"])):
                continue
            content = self.content(record)
            for place, value in enumerate(content):
                fell = value == values[place] and self.landed[place].get(value, now) <= self.granted_at[store]
                if value != self.truth[store][place] and not fell:
                    raise Violation(
                        f"after the power loss sector {place} of {record['name']} is {value:#x}, "
                        f"was {self.truth[store][place]:#x}"
                    )
            self.truth[store] = content
            self.granted_at[store] = now
        self.begin_epoch(values)

    def _check_fallback(self, place: int, value: int) -> None:
        zones = self.zones[place]
        if value not in zones:
            raise Violation(f"after the power loss sector {place} is {value:#x}: nobody wrote that")
        mine = self._write_of(place, value)
        for other in zones:
            write = self._write_of(place, other)
            answered = mine.answered if mine is not None else self.epoch
            if other != value and write is not None and write.durable and answered < write.begun:
                raise Violation(f"after the power loss sector {place} is {value:#x}: a flushed write is lost")

    def _write_of(self, place: int, value: int) -> Write | None:
        """The write of this epoch that put it; None: it was there at the beginning."""
        if value:
            return self.writes.get(value >> PLACE_BITS)
        return next((w for w in self.writes.values() if w.zero and w.first <= place < w.first + w.count), None)


def _check_zones(place: int, zones: dict[int, list[int]]) -> None:
    forward = sorted((answer, begin, value) for value, (answer, begin) in zones.items() if answer < begin)
    for (_, end, value), (begin, _, other) in pairwise(forward):
        if begin < end:
            raise Violation(f"sector {place} of the origin: {value:#x} and {other:#x} both hold at {begin}..{end}")
    for value, (answer, begin) in zones.items():
        if begin <= answer:
            for start, end, other in forward:
                if start < begin and answer < end:
                    raise Violation(
                        f"sector {place} of the origin: {value:#x}, written and answered in {begin}..{answer}, "
                        f"is lost under {other:#x} of {start}..{end}"
                    )


def _hex(values: list[int]) -> str:
    return " ".join(f"{value:#x}" for value in values)
