"""The protocol in force is raised by a person, and what follows from it.

    raise    IF ALIVE, mod(format) as seen, and no m/ record changed since the revision at which all were seen
             THEN format = the same, one protocol higher          a crash before or after: the old or the new one
    after    each member puts its own m/ record in the new shape, under mod(m/<me>)

All were seen: each one active (whoever is being recovered, or cleans up after itself, comes back as something else)
and speaking the next protocol. A member that joins meanwhile either has put its record, so the raise fails, or finds
``format`` changed, so its join fails, and looks again (joining.py). Protocol 1 joins without that compare: see
protocol.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from snapd.errors import CsnapError, FormatError, LockspaceError, Refused
from snapd.lockspace.joining import Joining
from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Compare, KeyValue, Put, Target, TxnResult, prefix_end
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.ports import NOTICE, Effects, Settings
from snapd.lockspace.records import ACTIVE, MemberRecord
from snapd.lockspace.session import Session

Raised = Callable[[int | CsnapError], None]
"""Called once, with the protocol that is in force now, or why it is not."""

LOST = "volume upgrade: etcd's answer was lost: look at csnap status, then ask again"


class Raising:
    """``look`` is called when something changed and the member has joined."""

    def __init__(
        self, settings: Settings, keys: Keys, session: Session, mirror: Mirror, effects: Effects, joining: Joining
    ) -> None:
        self._settings, self._keys, self._session, self._mirror = settings, keys, session, mirror
        self._effects, self._joining = effects, joining
        self._known = 0  # the protocol that was in force when we looked last
        self._busy = False
        self._done: Raised | None = None

    def resync(self) -> None:
        """What was under way is void, or in the mirror."""
        self._busy = False
        self._answer(LockspaceError(LOST))

    def look(self) -> None:
        try:
            protocol = self._joining.protocol()
        except FormatError:
            return  # whoever reads it for its sizes names it
        if self._known and protocol != self._known:
            self._effects.log(NOTICE, "protocol_raised", {"protocol": protocol, "was": self._known})
        self._known = protocol
        self._reshape()

    def _reshape(self) -> None:
        """Our own record says what the protocol in force has room for."""
        kv = self._mirror.members.get(self._settings.node)
        record = self._joining.own()
        wanted = self._joining.record()
        mine = record is not None and record.incarnation == wanted.incarnation and record.state == ACTIVE
        if kv is None or not mine or record == wanted or self._busy or not self._session.usable:
            return
        self._busy = True

        def answered(result: TxnResult | None) -> None:
            self._busy = False  # what became of it is in the mirror, whose change brings ``look``

        unchanged = Compare(kv.key, Target.MOD, kv.mod_revision)
        self._session.txn((unchanged,), (Put(kv.key, wanted.to_bytes()),), (), answered)

    # ---- what a person asks

    def upgrade(self, done: Raised) -> None:
        """Raise the protocol by one, or say that it is as high as it can be. Raises CsnapError."""
        if self._done is not None:
            raise Refused("volume upgrade: is under way")
        if not self._session.usable:
            raise Refused("this host has no lease, or etcd takes no writes: ask another host, or wait")
        kv = self._mirror.format
        if kv is None:
            raise Refused("volume upgrade: the volume is not initialized")
        protocol = self._joining.protocol()
        if protocol >= self._settings.speaks.newest:
            done(protocol)
            return
        check_members(self._records(), protocol + 1)
        self._done = done
        conditions = (
            Compare(kv.key, Target.MOD, kv.mod_revision),
            Compare(
                self._keys.members, Target.MOD, self._mirror.revision + 1, prefix_end(self._keys.members), less=True
            ),
        )

        def answered(result: TxnResult | None) -> None:
            if result is None:  # it may have been raised: not to be called refused
                self._answer(LockspaceError(LOST))
            elif result.succeeded:
                self._answer(protocol + 1)
            else:
                self._answer(Refused("volume upgrade: a member came or changed meanwhile: ask again"))

        self._session.txn(conditions, (Put(kv.key, raised(kv, protocol + 1)),), (), answered)

    def _records(self) -> list[MemberRecord]:
        return [MemberRecord.from_bytes(kv.key, kv.value) for kv in self._mirror.members.values()]

    def _answer(self, outcome: int | CsnapError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcome)


def check_members(records: list[MemberRecord], protocol: int) -> None:
    """Raise Refused, by name, unless every member is one for sure and speaks ``protocol``."""
    for record in sorted(records, key=lambda record: record.node):
        if record.state != ACTIVE:
            raise Refused(f"volume upgrade: {record.node} is being recovered ({record.state}): wait until it is done")
        if protocol not in record.speaks:
            raise Refused(f"volume upgrade: {record.node} has {record.speaks}, expected {protocol}: upgrade it first")


def raised(kv: KeyValue, protocol: int) -> bytes:
    """``format`` as it is, but for the protocol."""
    return json.dumps({**json.loads(kv.value), "protocol": protocol}, separators=(",", ":"), sort_keys=True).encode()
