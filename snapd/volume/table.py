"""The table of snapshots, as the lockspace grants it to this worker.

    granted     the whole table comes with the grant: COW devices are opened, stores made and loaded up to
                the counters that came with it; only then is I/O admitted
    asked back  nothing new is admitted, what runs is finished, then Done; the next grant brings the table anew

A COW device that cannot be opened keeps the worker from serving anything: the snapshot's content could
not be kept on this host's writes. It is tried again as long as the table is held.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from snapd import counters
from snapd.blockdev.base import Device
from snapd.clock import Clock
from snapd.errors import CsnapError, FormatError, Refused
from snapd.exstore.base import Action, StoreConfig
from snapd.exstore.clusterized import Clusterized
from snapd.messages import (
    EX,
    NL,
    UNTRUSTED,
    Bumped,
    Counter,
    Done,
    Forget,
    Grant,
    Invalidate,
    Invalidated,
    Overflow,
    Prepare,
    Prepared,
    Revoke,
    Serving,
    SnapshotSpec,
    Want,
)
from snapd.units import SECOND, SECTOR
from snapd.volume.snapshot import Snapshot
from snapd.volume.volume import Volume

LIVE = ("active", "overflow")
RETRY = 2 * SECOND
"""Between attempts to open a COW device that could not be opened."""


OpenCow = Callable[[SnapshotSpec], Device]
"""Open a COW device and verify that it is this snapshot's. Raises CsnapError."""

MakeStore = Callable[[StoreConfig], Clusterized]
"""Make the clusterized store of an open COW device."""


class Table:
    """Follows the messages about table, tails, counters and snapshots.

    vanished is told of dropped exports; serving is called once, when the first table is loaded.
    """

    def __init__(
        self,
        volume: Volume,
        open_cow: OpenCow,
        make_store: MakeStore,
        vanished: Callable[[list[Snapshot]], None],
        serving: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._volume = volume
        self._clock = clock
        self._open_cow = open_cow
        self._make_store = make_store
        self._vanished = vanished
        self._on_serving = serving
        self._prepared: dict[str, Device] = {}
        self._images: list[int] = []  # area buffers that are free again
        self._retired: list[Snapshot] = []  # dropped, but a re-read still uses their device
        self._grant: Grant | None = None  # of the table, not yet loaded
        self._retry_at = 0  # when to try a device again that could not be opened
        self._invalidating: list[Invalidate] = []  # wait for a re-read to end
        self._serving = False
        self._revoked = False
        self._slots = list(range(counters.SNAPSHOT_SLOTS))
        volume.on_drained = self._drained

    # ---- messages

    def granted(self, grant: Grant) -> None:
        """A lock was granted; whatever it is, its counters tell what others have committed."""
        kind, _, name = grant.resource.partition("/")
        if kind == "table":
            self._grant = grant
            self._volume.held, self._revoked = True, False
            self._apply()
            return
        self._counters(grant.counters)
        if kind == "region":
            self._volume.regions.granted(int(name), grant.mode)
        else:
            snapshot = self._volume.snapshots.get(name)
            if snapshot is None or snapshot.store is None:
                self._volume.send(Done(grant.resource, NL))
            else:
                snapshot.tail_granted = self._clock()
                snapshot.store.tail_granted(grant.skip)

    def revoked(self, revoke: Revoke) -> None:
        kind, _, name = revoke.resource.partition("/")
        if kind == "table":
            self._revoked = True
            self._volume.freeze()
        elif kind == "region":
            self._volume.regions.revoked(int(name), revoke.mode)
        else:
            snapshot = self._volume.snapshots.get(name)
            if snapshot is not None and snapshot.store is not None and snapshot.store.tail:
                snapshot.store.tail_revoked()

    def bumped(self, message: Bumped) -> None:
        snapshot = self._volume.snapshots.get(message.store)
        if snapshot is not None and snapshot.store is not None:
            snapshot.store.bumped(message.revision)

    def prepare(self, message: Prepare) -> None:
        """Open the device now, so that taking the snapshot cannot fail on it later."""
        error = ""
        store = message.snapshot.store
        if store not in self._prepared and store not in self._volume.snapshots:
            try:
                self._prepared[store] = self._open_cow(message.snapshot)
            except CsnapError as refused:
                error = str(refused)
        self._volume.send(Prepared(message.request, error))

    def forget(self, message: Forget) -> None:
        device = self._prepared.pop(message.store, None)
        if device is not None:
            device.close()

    def invalidate(self, message: Invalidate) -> None:
        """This member holds table EX; every host has drained. Set valid=0 with FUA."""

        def done(error: CsnapError | None) -> None:
            self._volume.send(Invalidated(message.request, "" if error is None else str(error)))

        snapshot = self._volume.snapshots.get(message.store)
        if snapshot is None or snapshot.store is None or not snapshot.store.core.valid:
            done(None)  # nothing of it is open, or its header says so already
        elif snapshot.store.core.busy:
            self._invalidating.append(message)
        elif not snapshot.store.core.loaded:
            done(None)  # its header could not be read; the table says what it is
        else:
            snapshot.store.modify(Action.INVALIDATE, done)

    # ---- the table

    def _drained(self) -> None:
        if self._volume.held and self._revoked:
            self._volume.held = self._revoked = False
            self._grant = None
            self._volume.send(Done("table", NL, self._volume.committed()))

    def tick(self) -> None:
        """Now and then: retry what could not be opened, finish what was dropped, publish the counters."""
        if self._retry_at and self._clock() >= self._retry_at:
            self._retry_at = 0
            if self._grant is not None and self._volume.held:
                self._apply()
        elif self._grant is not None and self._volume.held:
            self._loaded(self._grant)
        for snapshot in [snapshot for snapshot in self._retired if self._close(snapshot)]:
            self._retired.remove(snapshot)
        again, self._invalidating = self._invalidating, []
        for message in again:
            self.invalidate(message)
        self._volume.publish()
        devices = [self._volume.origin]
        for snapshot in self._volume.snapshots.values():
            self._publish(snapshot)
            if snapshot.device is not None:
                devices.append(snapshot.device)
        self._volume.words[counters.DIRECT] = int(all(device.direct for device in devices))

    def _apply(self) -> None:
        """Make the stack that the grant describes; then load it."""
        grant, volume = self._grant, self._volume
        assert grant is not None
        self._retry_at = 0
        volume.freeze()
        present = {spec.store: spec for spec in grant.snapshots if spec.state in (*LIVE, "invalid")}
        self._drop([snapshot for store, snapshot in volume.snapshots.items() if store not in present])
        for spec in present.values():
            snapshot = volume.snapshots.get(spec.store)
            if snapshot is None:
                export = volume.origin_export
                snapshot = Snapshot(spec, export.size, export.minimum_block, export.preferred_block)
                snapshot.slot = self._slots.pop() if self._slots else -1
                volume.snapshots[spec.store] = snapshot
            snapshot.spec = spec
            if spec.state == "invalid":
                self._shut(snapshot)
        volume.snapshots = {store: volume.snapshots[store] for store in present}
        volume.stack = []
        for snapshot in volume.snapshots.values():
            if snapshot.spec.state in LIVE:
                try:
                    self._open(snapshot)
                except CsnapError as error:
                    if isinstance(error, FormatError):
                        volume.words[counters.CORRUPTIONS[error.kind]] += 1
                    volume.stack = []
                    self._retry_at = self._clock() + RETRY
                    volume.notice(3, "cow_open_failed", snapshot=snapshot.spec.name, error=error)
                    volume.send(Serving(f"snapshot {snapshot.spec.name}: {error}"))
                    return
                volume.stack.append(snapshot)
                if snapshot.lost:  # still live in the table: whoever was told may have been about something else
                    volume.send(Overflow(spec.store, snapshot.lost))
        self._counters(grant.counters)
        self._loaded(grant)

    def _open(self, snapshot: Snapshot) -> None:
        if snapshot.store is not None:
            return
        volume, spec = self._volume, snapshot.spec
        chunk = volume.geometry.chunk_bytes
        if not self._images:
            try:
                self._images.append(volume.engine.arena.allocate(chunk))
            except MemoryError as error:
                raise Refused(f"no memory for the area of one more snapshot: {error}") from None
        device = self._prepared.pop(spec.store, None) or self._open_cow(spec)
        if not device.direct:
            volume.notice(4, "page_cache_used", snapshot=spec.name, device=device.path, reason="O_DIRECT refused")
        image = self._images.pop()
        snapshot.device, snapshot.image = device, image
        snapshot.store = self._make_store(
            StoreConfig(
                engine=volume.engine,
                device=device,
                chunk_sectors=chunk // SECTOR,
                origin_chunks=-(-volume.origin.size // chunk),
                image=image,
                zeros=volume.zeros,
                wake=volume.wake,
                ports=_Ports(volume, snapshot),
                words=volume.words,
            )
        )

    def _loaded(self, grant: Grant) -> None:
        """Admit I/O once every store is current. Each re-read that ends comes back here."""
        volume = self._volume
        if self._grant is not grant or not volume.held or self._retry_at:
            return  # asked back meanwhile, or granted anew; or a device could not be opened, and the stack is not whole
        for snapshot in volume.stack:
            store = snapshot.store
            assert store is not None
            if not store.current or not store.core.loaded:
                if store.dead is None:
                    store.resume(lambda error: self._loaded(grant))
                return  # a dead one has told the control process: the table will change
            if store.core.generation < snapshot.spec.generation:
                if not store.core.busy and not snapshot.lost:
                    store.seal(snapshot.spec.generation, partial(self._sealed, grant, snapshot))
                return  # ``tick`` looks again if it was busy
        self._grant = None
        if not self._revoked:
            volume.thaw()
        if not self._serving:
            self._serving = True
            self._on_serving()
            volume.send(Serving(""))

    def _sealed(self, grant: Grant, snapshot: Snapshot, error: CsnapError | None) -> None:
        """The device says that this table exists, so I/O under it may begin: see snapd.cluster.generations."""
        if error is not None:
            self._volume.lost(snapshot, error)
        else:
            self._loaded(grant)

    def _counters(self, told: tuple[Counter, ...]) -> None:
        """A live store whose counter is absent is as one that is marked: an etcd that was restored has none.

        Without the table the stack may be out of date: then its next grant tells.
        """
        volume = self._volume
        for counter in told:
            snapshot = volume.snapshots.get(counter.store)
            if snapshot is not None and snapshot.store is not None:
                snapshot.store.counter(counter)
        names = {counter.store for counter in told}
        for snapshot in volume.stack if volume.held else ():
            if snapshot.store is not None and snapshot.spec.store not in names:
                snapshot.store.counter(Counter(snapshot.spec.store, 0, UNTRUSTED))

    # ---- dropping

    def _drop(self, gone: list[Snapshot]) -> None:
        for snapshot in gone:
            del self._volume.snapshots[snapshot.spec.store]
            self._shut(snapshot)
            if snapshot.slot >= 0:
                self._slots.append(snapshot.slot)
                self._clear(snapshot.slot)
        if gone:
            self._vanished(gone)

    def _shut(self, snapshot: Snapshot) -> None:
        """Close the store, now or when its re-read has ended; give its tail back."""
        store = snapshot.store
        if store is None:
            return
        if store.tail:
            store.tail = NL
            self._volume.send(Done(f"tail/{snapshot.spec.store}", NL))
        self._retired.append(retired := Snapshot(snapshot.spec, 0, 0, 0))
        retired.store, retired.image = store, snapshot.image
        snapshot.store = snapshot.device = None
        if self._close(retired):
            self._retired.remove(retired)

    def _close(self, snapshot: Snapshot) -> bool:
        assert snapshot.store is not None
        if snapshot.store.core.busy:
            return False
        snapshot.store.destroy()
        self._images.append(snapshot.image)
        return True

    # ---- the counters page

    def _clear(self, slot: int) -> None:
        first = counters.SNAPSHOTS + slot * counters.SNAPSHOT_WORDS
        for index in range(first, first + counters.SNAPSHOT_WORDS):
            self._volume.words[index] = 0

    def _publish(self, snapshot: Snapshot) -> None:
        if snapshot.slot < 0:
            return
        words, first = self._volume.words, counters.SNAPSHOTS + snapshot.slot * counters.SNAPSHOT_WORDS
        number = int(snapshot.spec.store.replace("-", ""), 16)
        words[first + counters.UUID_HIGH], words[first + counters.UUID_LOW] = number >> 64, number & (1 << 64) - 1
        words[first + counters.STATE] = counters.STATES.index(snapshot.spec.state)
        if snapshot.store is not None:
            core = snapshot.store.core
            allocated, total = core.fraction_full()
            words[first + counters.ALLOCATED] = allocated
            words[first + counters.TOTAL] = total
            words[first + counters.METADATA] = core.metadata_sectors()
            words[first + counters.EXCEPTIONS] = core.count


class _Ports:
    """What a clusterized store needs of the volume (clusterized.Ports)."""

    def __init__(self, volume: Volume, snapshot: Snapshot) -> None:
        self._volume = volume
        self._snapshot = snapshot
        self._resource = f"tail/{snapshot.spec.store}"

    def want_tail(self) -> None:
        self._volume.send(Want(self._resource, EX))

    def release_tail(self, reserved: int) -> None:
        self._volume.send(Done(self._resource, NL, self._volume.committed(), reserved))

    def covered(self, old: int) -> bool:
        return self._volume.regions.held(self._region(old)) > NL

    def want_region(self, old: int) -> None:
        self._volume.regions.wait(self._region(old), 1)

    def _region(self, old: int) -> int:
        return old * self._volume.geometry.chunk_bytes // self._volume.geometry.region_bytes

    def defer(self, call: Callable[[], None]) -> None:
        self._volume.defer(call)

    def begin_write(self) -> bool:
        if not self._volume.held:
            return False
        self._volume.begin_use()
        return True

    def end_write(self) -> None:
        self._volume.end_use()

    def lost(self, error: CsnapError) -> None:
        self._volume.lost(self._snapshot, error)
