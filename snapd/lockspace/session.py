"""A member's lease, its epoch, and the door that every transaction goes through.

    START -> (joining, see joining.py) -> UP <-> DOUBT
                                           |       |
                                           v       v
                                          LOST (revives) -> UP            any -> OUT

UP      a/<me> bears our incarnation and its mod_revision is the epoch: ``ALIVE``, a condition of every transaction.
DOUBT   the outcome of a transaction is unknown. Nothing is sent but a bump of the epoch, again and again, until
        the mirror shows a/<me> changed. From there on every older transaction of ours is either in the mirror
        or void, so what the mirror says about our keys is definitive.
LOST    the lease is gone. A new one, everything read anew, and a/<me> put again on the condition that m/<me>
        is unchanged: then nobody has recovered us and every hold is still ours.
OUT     fenced, refused, or left.

Deadline, with TTL 10 s as etcd granted it (margin 2 s), t = when the keepalive was *sent*:

    t        keepalive sent; etcd gets it at t or later and counts 10 s from there
    t +  8   the deadline: the worker submits and answers nothing any more
    t + 10   the earliest instant at which the lease can end, so that others may begin to recover us
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from snapd.errors import CsnapError, Fenced
from snapd.lockspace import ports
from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import (
    Compare,
    Failure,
    KeyValue,
    Kv,
    LeaseResult,
    Operation,
    Put,
    Range,
    Target,
    Txn,
    TxnResult,
)
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.ports import Effects, Settings, Timer, Timers
from snapd.units import SECOND

START, UP, DOUBT, LOST, OUT = "start", "up", "doubt", "lost", "out"

TXN_TIMEOUT = 2 * SECOND
"""A transaction takes a millisecond; one that is in flight when the leader dies would hang for 7 s."""

PAUSE, PAUSE_LIMIT = SECOND // 20, 2 * SECOND
"""After a definite failure (no space, refused) nothing is sent for PAUSE, doubled each time up to PAUSE_LIMIT."""

Outcome = Callable[[TxnResult | None], None]
"""None: it failed and nothing happened; everything is looked at again after a pause. Not called at all if the
outcome is unknown: then ``Owner.resync`` is."""


class Owner(Protocol):
    """Who is told what becomes of the session."""

    def look(self) -> None:
        """START or LOST: decide what to do about m/<me> and a/<me>. Called whenever something changed."""

    def resync(self) -> None:
        """An epoch was read: forget what is in flight and take what the mirror says about our keys."""

    def ready(self) -> None:
        """A pause or a stall has ended: look at everything."""

    def ended(self, error: CsnapError | None) -> None:
        """OUT."""


def margin(ttl: int) -> int:
    """Nanoseconds of safety before a lease of ``ttl`` seconds can end: what a submitted write may still take."""
    return max(SECOND, ttl * SECOND // 5)


class Session:
    """See the module. ``mirror`` is set by the composition before anything is called."""

    mirror: Mirror

    def __init__(self, settings: Settings, keys: Keys, kv: Kv, timers: Timers, effects: Effects, owner: Owner) -> None:
        self.phase = START
        self.epoch = 0
        self.lease = 0
        self.ttl = 0
        self.deadline = 0
        self.since = 0
        """Since when the lease has been unbroken, and the deadline ahead: whoever was stalled does not know how long
        etcd was away, and others may have lost their leases to that and revive in a moment."""
        self.stalled = True
        self.bumps = 0
        self._settings, self._keys, self._kv = settings, keys, kv
        self._timers, self._effects, self._owner = timers, effects, owner
        self._generation = 0
        self._proven = False  # the epoch was read after the stall began
        self._renewing = True
        self._granting = False
        self._paused = 0
        self._pause_ends: Timer | None = None
        self._deadline_timer: Timer | None = None
        self._beat: Timer | None = None
        self._why = ""

    @property
    def usable(self) -> bool:
        """Whether transactions may be sent."""
        return self.phase == UP and not self.stalled and self._pause_ends is None

    @property
    def live(self) -> bool:
        """Whether the deadline lies ahead."""
        return not self.stalled and self._timers.now() < self.deadline

    @property
    def alive(self) -> Compare:
        """The condition in every transaction of ours."""
        return Compare(self._keys.alive(self._settings.node), Target.MOD, self.epoch)

    # ---- transactions

    def txn(
        self,
        compare: tuple[Compare, ...],
        success: tuple[Operation, ...],
        failure: tuple[Operation, ...],
        done: Outcome,
    ) -> None:
        """Send IF ALIVE and ``compare`` THEN ``success`` ELSE ``failure``. Only while ``usable``.

        A failure means that ``compare`` failed: if it was ALIVE, the outcome is void, and resync follows.
        """
        assert self.usable
        key = self._keys.alive(self._settings.node)
        generation = self._generation

        def received(result: TxnResult | Failure) -> None:
            if generation != self._generation:
                return  # void, or told by the mirror
            if isinstance(result, Failure):
                self._failed(result, done)
            elif result.succeeded:
                self._paused = 0
                done(result)
            elif self._epoch_of(result) == self.epoch:
                self._paused = 0
                done(TxnResult(False, result.revision, result.results[1:]))
            else:
                self.doubt("the epoch has changed")  # the mirror will say to what, or that it is gone

        self._kv.txn(Txn((self.alive, *compare), success, (Range(key), *failure)), TXN_TIMEOUT, received)

    @staticmethod
    def _epoch_of(result: TxnResult) -> int:
        found = result.results[0]
        kvs: tuple[KeyValue, ...] = getattr(found, "kvs", ())
        return kvs[0].mod_revision if kvs else 0

    def _failed(self, failure: Failure, done: Outcome) -> None:
        if failure.wrong_cluster:
            self.lost_cluster(failure.message)
        elif failure.ambiguous:
            self.doubt(failure.message)
        else:
            self.pause(failure)
            done(None)

    def pause(self, failure: Failure) -> None:
        """Send nothing for a while."""
        self._paused = min(max(PAUSE, 2 * self._paused), PAUSE_LIMIT)
        event = "etcd_no_space" if failure.no_space else "etcd_refused"
        self._effects.log(ports.WARNING, event, {"error": failure.message, "pause_ns": self._paused})
        if self._pause_ends is None:
            self._pause_ends = self._timers.call_at(self._timers.now() + self._paused, self._pause_over)

    def _pause_over(self) -> None:
        self._pause_ends = None
        self._owner.ready()

    # ---- the epoch

    def doubt(self, why: str) -> None:
        """The outcome of something is unknown: void what may still be in flight, then read."""
        if self.phase != UP:
            return
        self._effects.log(ports.NOTICE, "epoch_bump", {"why": why})
        self.phase = DOUBT
        self._generation += 1
        self._bump()

    def _bump(self) -> None:
        """Until the mirror shows a changed a/<me> (``look``): an unknown outcome here changes nothing."""
        if self.phase != DOUBT:
            return
        self.bumps += 1
        generation = self._generation
        key = self._keys.alive(self._settings.node)
        put = Put(key, self._settings.incarnation.encode(), self.lease)

        def received(result: TxnResult | Failure) -> None:
            if isinstance(result, Failure) and result.wrong_cluster:
                self.lost_cluster(result.message)
            elif generation == self._generation:
                self._timers.call_at(self._timers.now() + 2 * PAUSE, lambda: again(generation))

        def again(generation: int) -> None:
            if generation == self._generation:
                self._bump()

        self._kv.txn(Txn((self.alive,), (put,)), TXN_TIMEOUT, received)

    def look(self) -> None:
        """The mirror changed: is a/<me> still what we think?"""
        if not self.mirror.ready or self.phase == OUT:
            return
        if self.phase in (UP, DOUBT):
            kv = self.mirror.alive.get(self._settings.node)
            if kv is None:
                self.lose("a/ is gone")
            elif not self._mine(kv):
                self.out(Fenced(f"{kv.key}: another incarnation has taken this node's name"))
            elif kv.mod_revision != self.epoch:
                self.adopt(kv)
        if self.phase in (START, LOST):
            self._owner.look()

    def _mine(self, kv: KeyValue) -> bool:
        return kv.value == self._settings.incarnation.encode()

    def adopt(self, kv: KeyValue) -> None:
        """The mirror shows a/<me> with our incarnation: its mod_revision is the epoch, its lease the one to renew."""
        if not self.since or self.phase in (START, LOST):
            self.since = self._timers.now()
        self.epoch = kv.mod_revision
        if kv.lease != self.lease:  # an older attempt to revive was applied after all: its lease proves itself anew
            self.lease, self.deadline = kv.lease, 0
        self.phase = UP
        self._generation += 1
        self._proven = True
        self._owner.resync()
        self._thaw()
        self._owner.ready()

    # ---- the lease

    def need_lease(self) -> bool:
        """Return whether there is a lease; ask for one if not."""
        if self.lease:
            return True
        if not self._granting:
            self._granting = True
            sent = self._timers.now()

            def received(result: LeaseResult | Failure) -> None:
                self._granting = False
                if isinstance(result, Failure):
                    if result.wrong_cluster:
                        self.lost_cluster(result.message)
                    return  # ``look`` is called again
                self.lease = result.lease
                self.ttl = result.ttl
                self._renewed(sent)
                if self._beat is None:
                    self._beat = self._timers.call_at(self._timers.now(), self._keepalive)
                self._owner.look()

            self._kv.lease_grant(self._settings.ttl, TXN_TIMEOUT, received)
        return False

    def _keepalive(self) -> None:
        """Attempts TTL/6 apart, each with that as its limit; so five may fail before the deadline passes."""
        if self.phase == OUT:
            return
        period = self.ttl * SECOND // 6
        sent, lease = self._timers.now(), self.lease
        self._beat = self._timers.call_at(sent + period, self._keepalive)
        if not self._renewing or not lease:
            return

        def received(result: LeaseResult | Failure) -> None:
            if self.phase == OUT or lease != self.lease:
                return
            if isinstance(result, Failure):
                self._effects.observe("lease_renew_failures_total", {}, 1)
                if result.wrong_cluster:
                    self.lost_cluster(result.message)
            elif result.ttl <= 0:
                self.lose("the lease has expired")
            elif self._renewing:
                self._effects.observe("lease_renew_seconds", {}, self._timers.now() - sent)
                self._renewed(sent)

        self._kv.lease_keepalive(lease, period, received)

    def _renewed(self, sent: int) -> None:
        deadline = sent + self.ttl * SECOND - margin(self.ttl)
        if deadline <= self.deadline:
            return
        self.deadline = deadline
        if not self.stalled:
            self._publish()
        elif self.phase == UP and not self._proven:
            self.doubt("the lease was renewed past the deadline")  # proves that a/<me> stands, by reading it anew
        else:
            self._thaw()

    def _publish(self) -> None:
        self._effects.set_deadline(self.deadline)
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._deadline_timer = self._timers.call_at(self.deadline, self._passed)

    def _thaw(self) -> None:
        """Go on, if the epoch was read since the stall and the deadline lies ahead."""
        if self.stalled and self.phase == UP and self._proven and self._timers.now() < self.deadline:
            self.stalled = False
            self.since = self._timers.now()
            self._publish()
            self._owner.ready()

    def _passed(self) -> None:
        if self.phase != OUT and not self.stalled and self._timers.now() >= self.deadline:
            self._stall("the deadline has passed")

    def _stall(self, why: str) -> None:
        self._proven = False
        if not self.stalled:
            self.stalled = True
            self._why = why
            self._effects.log(ports.WARNING, "stalled", {"why": why})
            self._owner.ready()

    @property
    def why(self) -> str:
        """Why it is stalled."""
        return self._why if self.stalled else ""

    def lose(self, why: str) -> None:
        """The lease is gone. Nobody may have noticed yet, but nothing is granted any more."""
        if self.phase not in (UP, DOUBT):
            self.lease = 0  # while joining or reviving: just take another one
            self.deadline = 0
            return
        self._effects.set_deadline(0)
        self.deadline = 0
        self.phase = LOST
        self._generation += 1
        self.lease = 0
        self._stall(why)
        if not self._renewing:
            self.out(Fenced(self._why_not))
            return
        self.mirror.open()

    def give_up(self, why: str) -> None:
        """A revoke stays unanswered: let the lease end, and never revive."""
        if self._renewing:
            self._renewing = False
            self._why_not = why
            self._effects.log(ports.ERROR, "stopped_renewing", {"why": why})

    _why_not = ""

    def lost_cluster(self, message: str) -> None:
        self.out(Fenced(f"{message}: all holds are lost"))

    def hold_lost(self, message: str) -> None:
        """What must not be: a hold is gone although our epoch stands. Nothing is surely ours any more."""
        self.out(Fenced(message))

    def out(self, error: CsnapError | None) -> None:
        """The end."""
        if self.phase == OUT:
            return
        self.phase = OUT
        self._generation += 1
        self._effects.set_deadline(0)
        self.mirror.close()
        for timer in (self._beat, self._deadline_timer, self._pause_ends):
            if timer is not None:
                timer.cancel()
        self._owner.ended(error)
