"""Becoming a member, and becoming one again after the lease was lost. Decides from the mirror alone.

    a/<me>      m/<me>                               what to do
    absent      absent                               join: put both, if we speak the protocol in force (protocol.py)
    ours        ours                                 joined
    absent      ours, active                         revive: put a/, on the condition that m/ is unchanged
    other's     any                                  an older incarnation of this host: end its lease once its processes
                                                     are proven gone. Of another host: refused by name
    absent      older, this host, proven gone        take m/ over as its own coordinator, put a/; recovery cleans up
    absent      being recovered by a live member     wait until that is over
    any         not ours, after we were a member     fenced

Every put stands under the revisions that the decision was made from, and its success is read from the mirror, never
from the answer: a lost answer needs no thought. *A crash after a put leaves a dead member like any other.*
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from snapd.errors import Fenced, FormatError, Refused
from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Compare, Failure, KeyValue, Kv, LeaseResult, Put, Target, Txn, TxnResult
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.ports import NOTICE, WARNING, Effects, Settings, Timers
from snapd.lockspace.protocol import STARTED, check_spoken, in_force
from snapd.lockspace.records import ACTIVE, FENCED, MemberRecord
from snapd.lockspace.session import LOST, TXN_TIMEOUT, Session
from snapd.units import SECOND

LOOK_AGAIN = SECOND // 4
"""Between looks while nothing of the mirror may change: for a lease, for a proof, after a lost answer."""


class Joining:
    """``look`` is the session's ``Owner.look``: phase START or LOST."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        kv: Kv,
        session: Session,
        mirror: Mirror,
        timers: Timers,
        effects: Effects,
        proven: Callable[[MemberRecord], bool],
    ) -> None:
        self._settings, self._keys, self._kv = settings, keys, kv
        self._session, self._mirror, self._timers, self._effects = session, mirror, timers, effects
        self._proven = proven
        self._busy = False
        self._member = False  # we were one: what is not ours any more has fenced us
        self._tried = 0  # the lease of a join whose outcome is unknown: what was fenced must not join again
        self._waiting = ""

    @property
    def in_doubt(self) -> bool:
        """Whether a join was sent that may have been, or may yet be, applied."""
        return self._busy or self._tried != 0

    def record(self) -> MemberRecord:
        """This incarnation's own, in the shape of the protocol in force."""
        settings = self._settings
        try:
            roomy = self.protocol() >= STARTED
        except FormatError:  # damaged under a running member: whoever reads it for its sizes names it
            roomy = False
        return MemberRecord(
            settings.node, ACTIVE, settings.machine_id, settings.boot_id, settings.incarnation,
            settings.lock_path, settings.fence_key, settings.speaks.to_text(),
            started=settings.started if roomy else 0,
        )  # fmt: skip

    def protocol(self) -> int:
        """In force, as the mirror has it. Raises FormatError."""
        kv = self._mirror.format
        return in_force(self._keys.format, kv.value if kv is not None else None)

    def joined(self) -> bool:
        """Whether the mirror shows this incarnation as an active member: its old holds are gone."""
        record = self.own()
        joined = record is not None and record.incarnation == self._settings.incarnation and record.state == ACTIVE
        self._member = self._member or joined
        return joined

    def own(self) -> MemberRecord | None:
        """m/<me> as the mirror has it; None if there is none, or none that makes sense."""
        kv = self._mirror.members.get(self._settings.node)
        if kv is None:
            return None
        try:
            return MemberRecord.from_bytes(kv.key, kv.value)
        except FormatError:
            return None

    def cleaning(self) -> bool:
        """Whether this incarnation is cleaning up what an older one of this node held."""
        record = self.own()
        return record is not None and record.state == FENCED and record.by == self._settings.incarnation

    def look(self) -> None:
        """Take the next step, if there is one now; look again in a while in any case."""
        self._again()
        if self._busy or not self._mirror.ready:
            return
        node = self._settings.node
        member, alive = self._mirror.members.get(node), self._mirror.alive.get(node)
        try:
            record = MemberRecord.from_bytes(member.key, member.value) if member is not None else None
        except FormatError as error:
            self._session.out(Refused(f"{error}: another csnap's, or damaged; see csnap locks, then delete the key"))
            return
        mine = self._settings.incarnation
        if alive is not None and alive.value == mine.encode() and (self.joined() or self.cleaning()):
            self._session.adopt(alive)
            return
        if self._session.phase == LOST and not (self.joined() or self.cleaning()):
            self._session.out(Fenced("the lease was lost, and others have recovered this member"))
        elif record is not None and record.machine_id != self._settings.machine_id:
            self._session.out(Refused(f"node name {node!r} is in use by another machine ({record.machine_id})"))
        elif alive is not None:
            self._end_older(alive, record)
        elif record is None:
            self._join(Compare(self._keys.member(node), Target.CREATE, 0), self.record())
        elif member is not None:
            self._rejoin(member, record)

    # ---- the cases

    def _rejoin(self, member: KeyValue, record: MemberRecord) -> None:
        unchanged = Compare(member.key, Target.MOD, member.mod_revision)
        mine = self._settings.incarnation
        if mine in (record.incarnation if record.state == ACTIVE else "", record.by):
            self._join(unchanged, None)  # revive: m/ stays as it is
        elif record.by_node not in ("", self._settings.node) and self._alive(record.by_node, record.by):
            self._wait(f"{record.by_node} is recovering what this node held")
        elif self._gone(record):
            speaks = self._settings.speaks.to_text()
            self._join(unchanged, replace(record, state=FENCED, by=mine, by_node=self._settings.node, address=speaks))

    def _alive(self, node: str, incarnation: str) -> bool:
        kv = self._mirror.alive.get(node)
        return kv is not None and kv.value == incarnation.encode()

    def _end_older(self, alive: KeyValue, record: MemberRecord | None) -> None:
        """a/<me> of another incarnation: end its lease as soon as its processes are proven gone."""
        if record is None:
            self._wait("a liveness key without a member record, until its lease ends")
        elif self._gone(record):
            self._effects.log(NOTICE, "older_lease_ended", {"incarnation": record.incarnation})
            self._busy = True

            def revoked(result: LeaseResult | Failure) -> None:
                self._busy = False

            self._kv.lease_revoke(alive.lease, TXN_TIMEOUT, revoked)

    def _gone(self, record: MemberRecord) -> bool:
        """Whether no process of that older incarnation of this host can be running: another boot, or proven."""
        if record.boot_id != self._settings.boot_id or self._proven(record):
            return True
        self._wait(f"the processes of the older incarnation still hold {record.lock_path}")
        return False

    def _wait(self, why: str) -> None:
        if why != self._waiting:
            self._waiting = why
            self._effects.log(WARNING, "join_waits", {"why": why})

    def _join(self, condition: Compare, record: MemberRecord | None) -> None:
        if not self._spoken() or not self._session.need_lease():
            return
        if record is not None and self._tried not in (0, self._session.lease):
            self._session.out(Fenced("the lease ended while joining: others may have fenced this incarnation"))
            return
        self._tried = self._session.lease if record is not None else 0
        alive = self._keys.alive(self._settings.node)
        mine = Put(alive, self._settings.incarnation.encode(), self._session.lease)
        member = self._keys.member(self._settings.node)
        puts = (mine,) if record is None else (Put(member, record.to_bytes()), mine)
        self._busy = True

        def answered(result: TxnResult | Failure) -> None:
            self._busy = False
            if not (result.ambiguous if isinstance(result, Failure) else result.succeeded):
                self._tried = 0
            if isinstance(result, Failure):
                if result.wrong_cluster:
                    self._session.lost_cluster(result.message)
                else:
                    self._wait(result.message)
            elif self._mirror.reached(result.revision):  # else its next change brings ``look``
                self.look()

        conditions = (Compare(alive, Target.CREATE, 0), condition, self._protocol_unchanged())
        self._kv.txn(Txn(conditions, puts), TXN_TIMEOUT, answered)

    def _protocol_unchanged(self) -> Compare:
        kv = self._mirror.format
        return Compare(self._keys.format, Target.MOD, kv.mod_revision if kv is not None else 0)

    def _spoken(self) -> bool:
        """Whether this member speaks the protocol in force; out if it does not."""
        try:
            check_spoken(self._settings.node, self._settings.speaks, self.protocol())
        except (FormatError, Refused) as error:
            self._session.out(Refused(str(error)))
            return False
        return True

    _scheduled = False

    def _again(self) -> None:
        if self._scheduled:
            return
        self._scheduled = True

        def again() -> None:
            self._scheduled = False
            self._session.look()

        self._timers.call_at(self._timers.now() + LOOK_AGAIN, again)
