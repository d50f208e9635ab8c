"""``clusterized_<core>``: what makes a core store safe on several hosts at once.

The core appends; this decides when it may. It holds, for its store, three things of the lockspace:

tail     the append position. Appending, reserving COW chunks and zeroing a stale tail need it, EX.
counter  entries committed by anybody, as granting transactions report it. If its revision differs from
         the one this member last saw, everything up to its value is re-read before a miss is believed.
extent   chunks reserved under the tail, used without it; recorded when the tail is released.

One function, ``_step``, looks at the state and takes the one next step; every event only changes the
state and calls it. So no order of events needs thinking of twice. Rules it keeps:

- untrusted counter: take the tail, re-read to the end, zero what lies behind, flush; only then go on.
- a numeric counter is re-read exactly that far: what lies behind may be in flight or torn.
- a tail asked back is given back after the batch that runs; but every grant serves one batch and one
  reservation first, so hosts that contend all get on.
- nothing is re-read or zeroed while an append is in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from snapd import counters
from snapd.errors import Corrupt, CsnapError, FormatError, Refused, StoreFull, WouldBlock
from snapd.exstore.base import Action, Finished, StatusKind, StoreConfig, StoreType
from snapd.exstore.persistent import Batch, Persistent
from snapd.messages import EX, NL, UNTRUSTED, Counter

EXTENT_CHUNKS = 256
"""Chunks reserved at once by default: with 16 KiB chunks 4 MiB, some tens of commits without the tail."""

EXTENT_FRACTION = 16
"""An extent is at most this fraction of what is free, so a filling device is shared out ever finer."""

OPTION = "cluster_uuid:"


class Ports(Protocol):
    """What the store needs of the volume around it."""

    def want_tail(self) -> None:
        """Ask for the tail, EX. The grant arrives at ``tail_granted``."""

    def release_tail(self, reserved: int) -> None:
        """Give the tail back, announcing what was committed and the end of this member's extents."""

    def covered(self, old: int) -> bool:
        """Whether this member holds the lock (CR or EX) of the region of ``old``."""

    def want_region(self, old: int) -> None:
        """Ask for that lock, CR."""

    def defer(self, call: Callable[[], None]) -> None:
        """Call at the end of this turn of the loop, so that what a turn brings makes one batch."""

    def begin_write(self) -> bool:
        """A write to the COW device that no request waits for is a use of the table: False if that is not held.

        Else a drained host could still write to a device that is deleted, and perhaps used again.
        """

    def end_write(self) -> None:
        """That use is over."""

    def lost(self, error: CsnapError) -> None:
        """The store cannot go on: the snapshot must be invalidated."""


class Clusterized:
    """A core store, its tail, its counter and its extent. See base.ExceptionStore for the operations."""

    def __init__(self, core: StoreType, config: StoreConfig) -> None:
        self.cluster_uuid, rest = split_cluster_uuid(config.options)
        self._ports: Ports = config.ports
        self._wake = config.wake
        self._words = config.words
        made = core(replace(config, options=rest))
        if not isinstance(made, Persistent):
            raise Refused(f"store type {core.name!r}: cannot be driven by a cluster: it is no append-only list")
        self.core = made
        self.tail = NL
        self._asked = False  # a Want for the tail is out
        self._revoked = False
        self._owes_batch = self._owes_space = False  # not yet served under this grant
        self._skip = 0
        self._seen = 0  # revision of the counter up to whose value everything is known
        self._value = 0  # the highest value seen at the highest revision seen
        self._target: Counter | None = None  # a counter that moved: to be re-read up to
        self._sure = False  # read to the end under this grant of the tail: nobody else has appended since
        self._pending: Batch = []
        self._space_wanted = False
        self._full = False
        self._deferred = False
        self._loaded: Finished | None = None
        self.dead: CsnapError | None = None

    # ---- events from the lockspace

    def counter(self, counter: Counter) -> None:
        """A granting transaction read this counter."""
        if 0 < counter.revision <= self._seen:
            return  # nothing moved; or an answer that was overtaken by one that told more
        if not counter.revision and self._sure:
            return  # absent, and stays so until this tail is released
        if self._target is not None and 0 < counter.revision <= self._target.revision:
            return
        if self._target is None and UNTRUSTED < self._value <= counter.value <= self.core.count and self.core.loaded:
            self._seen, self._value = counter.revision, counter.value  # this member's own bump: all of it is known
            return
        self._target = counter
        self._step()

    def bumped(self, revision: int) -> None:
        """A release of this member set the counter, under this store's tail: everything up to it is known."""
        self._seen = max(self._seen, revision)

    def tail_granted(self, skip: int) -> None:
        """The tail is held from now on; others have reserved chunks up to ``skip``."""
        self.tail, self._asked, self._revoked = EX, False, False
        self._skip = skip
        self._owes_batch, self._owes_space = bool(self._pending), self._space_wanted
        self._step()

    def tail_revoked(self) -> None:
        """Somebody waits for the tail."""
        self._revoked = True
        self._step()

    @property
    def current(self) -> bool:
        """Whether everything the counter announced is known, so that a miss under the region's lock is final."""
        return self._target is None and self.dead is None

    @property
    def caught_up(self) -> bool:
        """Whether the core's count is that of everything the counter announced; also of a store that is dead.

        A store dies of a failed append with nothing to re-read: what it committed before must still be announced.
        """
        return self._target is None

    @property
    def idle(self) -> bool:
        """Nothing is being read, appended or waiting to be."""
        return not self.core.busy and not self._pending

    # ---- the decision

    def _step(self) -> None:
        if self.core.busy:
            return  # every completion calls again
        if self.dead is not None:
            self._fail_pending()
            if self.tail and self._revoked:
                self._release()
        elif self._target is not None:
            self._catch_up(self._target)
        elif self.tail:
            self._use_tail()
        elif self._pending or self._space_wanted:
            self._ask()

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._ports.want_tail()

    def _use_tail(self) -> None:
        if self._pending and (self._owes_batch or not self._revoked):
            if not self._owes_batch and self._words is not None:  # else it waited for this grant
                self._words[counters.CACHED["tail", "EX"]] += 1
            self._owes_batch = False
            self._append()
        elif self._space_wanted and (self._owes_space or not self._revoked):
            self._owes_space = self._space_wanted = False
            self._reserve()
            self._wake()
            self._step()
        elif self._revoked:
            self._release()

    def _reserve(self) -> None:
        """Safe beside an append of this member: what it appends was reserved, so lies below reserved_until."""
        self._full = not self.core.reserve(self._extent(), self._skip)

    def _extent(self) -> int:
        used = self.core.layout.ordinal(max(self.core.next_free, self.core.reserved_until, self._skip))
        return max(1, min(EXTENT_CHUNKS, (self.core.layout.capacity - used) // EXTENT_FRACTION))

    def _release(self) -> None:
        self._revoked = False
        self._owes_batch = self._owes_space = False
        self._ports.release_tail(self.core.reserved_until)
        self.tail, self._sure = NL, False
        self._step()

    def _catch_up(self, target: Counter) -> None:
        if target.value == UNTRUSTED:
            if not self.tail:
                self._ask()
                return
            self._count_reread("untrusted")
            self.core.reread(None, lambda error: self._zero_tail(target, error))
            return
        if target.revision > self._seen and target.value < self._value:
            what = f"counter: {target.value} entries at revision {target.revision}, {self._value} before"
            self._die(Corrupt(what, "entries_vanished"))
            return
        self._value = max(self._value, target.value)
        self._count_reread("counter" if self._seen else "load")
        self.core.reread(target.value, lambda error: self._caught_up(target, error))

    def _count_reread(self, reason: str) -> None:
        if self._words is not None:
            self._words[counters.REREADS[reason]] += 1

    def _zero_tail(self, target: Counter, error: CsnapError | None) -> None:
        if error is not None:
            self._die(error)
        elif self._ports.begin_write():  # else: the table's grant brings ``resume``
            self.core.take_over(lambda failed: self._zeroed(target, failed))

    def _zeroed(self, target: Counter, error: CsnapError | None) -> None:
        self._caught_up(target, error)
        self._ports.end_write()

    def _caught_up(self, target: Counter, error: CsnapError | None) -> None:
        if error is not None:
            self._die(error)
            return
        self._seen = max(self._seen, target.revision)
        self._sure = self._sure or target.value == UNTRUSTED
        if self._target is target or (self._sure and self._target is not None and not self._target.revision):
            self._target = None
        if self._target is None:
            loaded, self._loaded = self._loaded, None
            if loaded is not None:
                loaded(None)
            self._wake()
        self._step()

    def _append(self) -> None:
        room = self.core.room
        batch, self._pending = self._pending[:room], self._pending[room:]
        self.core.append([(old, new) for old, new, _ in batch], lambda error: self._appended(batch, error))

    def _appended(self, batch: Batch, error: CsnapError | None) -> None:
        for _, _, callback in batch:
            callback(error is None)
        if error is not None:
            self._die(error)
        else:
            self._later()

    def _later(self) -> None:
        if not self._deferred:
            self._deferred = True
            self._ports.defer(self._deferred_step)

    def _deferred_step(self) -> None:
        self._deferred = False
        self._step()

    def _die(self, error: CsnapError) -> None:
        if self.dead is None:
            self.dead = error
            if isinstance(error, FormatError) and self._words is not None:
                self._words[counters.CORRUPTIONS[error.kind]] += 1
            loaded, self._loaded = self._loaded, None
            if loaded is not None:
                loaded(error)
            self._ports.lost(error)
        self._step()

    def give_up(self, error: CsnapError) -> None:
        """This member stops for good: fail what waits for the tail, start nothing more."""
        self._die(error)

    def _fail_pending(self) -> None:
        pending, self._pending = self._pending, []
        for _, _, callback in pending:
            callback(False)

    # ---- the operations of a store

    def resume(self, done: Finished) -> None:
        """Report when everything the last counter announced is known. What waited for the table goes on."""
        if self.current:
            done(None)
        elif self.dead is not None:
            done(self.dead)
        else:
            self._loaded = done
            self._step()

    def prepare(self, old: int) -> int:
        """Take a chunk of this member's extent. The caller holds the region of ``old``, EX (seed defect 13)."""
        if self.dead is not None:
            raise self.dead
        if not self.current:
            raise WouldBlock("the store is being re-read")
        if not self.core.available:
            if self.tail and not self._revoked:
                self._reserve()
            elif not self._full:
                self._space_wanted = True
                self._step()  # which may reserve at once, under a tail that is asked back: nobody would wake the caller
            if not self.core.available:
                if self._full:
                    raise StoreFull(f"all {self.core.layout.capacity} chunks of the COW device are used or reserved")
                raise WouldBlock("chunks are reserved under the tail lock")
        return self.core.prepare(old)

    def commit(self, old: int, new: int, callback: Callable[[bool], None]) -> None:
        self._pending.append((old, new, callback))
        self._later()

    def lookup(self, old: int, can_block: bool = False) -> int:
        """A hit needs no lock. A miss is final only under the region's lock and with nothing to re-read."""
        new = self.core.lookup(old)
        if new:
            return new
        covered = self._ports.covered(old)
        if covered and self.current:
            return 0
        if can_block and not covered:
            self._ports.want_region(old)
        raise WouldBlock(f"chunk {old}: a miss is final only under its region's lock")

    def modify(self, action: Action, done: Finished) -> None:
        """The caller's member holds table EX, so every host has drained."""
        self.core.modify(action, done)

    def seal(self, generation: int, done: Finished) -> None:
        """Raise the sidecar's generation, as a use of the table, which is held. Nothing else is under way."""

        def sealed(error: CsnapError | None) -> None:
            done(error)
            self._ports.end_write()
            self._step()

        held = self._ports.begin_write()
        assert held, "sealed under the table's grant"
        self.core.seal(generation, sealed)

    def presuspend(self) -> None:
        self.core.presuspend()

    def postsuspend(self) -> None:
        self.core.postsuspend()

    def fraction_full(self) -> tuple[int, int]:
        return self.core.fraction_full()

    def status(self, kind: StatusKind) -> str:
        words = self.core.status(kind)
        return f"{words} {OPTION}{self.cluster_uuid}" if kind is StatusKind.TABLE else words

    def destroy(self) -> None:
        self.core.destroy()


def split_cluster_uuid(options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return (uuid, the other options). ``cluster_uuid:<UUID>`` comes last, once, whole and in canonical form.

    Raises Refused otherwise: the seed underflowed on no arguments and cut what was too long (defect 6).
    """
    if not options or not options[-1].startswith(OPTION):
        raise Refused(f"options {' '.join(options)!r}: expected {OPTION}<UUID> as the last one")
    text = options[-1].removeprefix(OPTION)
    try:
        canonical = str(UUID(text)) == text.lower()
    except ValueError:
        canonical = False
    if not canonical:
        raise Refused(f"{OPTION} {text[:80]!r}: expected a UUID like 5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11")
    if any(option.startswith(OPTION) for option in options[:-1]):
        raise Refused(f"options {' '.join(options)!r}: {OPTION} is given twice")
    return text.lower(), options[:-1]
