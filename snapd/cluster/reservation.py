"""One ``snapshot create`` at a time in the whole cluster: ``c/<node>``, from before a COW device is formatted until its
formatting was used or undone.

Two hosts that format one device at the same moment would each find it free, and one would overwrite the other's header.
The key is put only if no other is there. It is like a hold: not on the lease, for a thread that formats looks at no
deadline; it goes with its owner's word, or in recovery after its owner was fenced.
"""

from __future__ import annotations

from collections.abc import Callable

from snapd.errors import CsnapError, LockspaceError, Refused
from snapd.lockspace.claims import empty
from snapd.lockspace.kv import Compare, Delete, KeyValue, Operation, Put, Target, TxnResult
from snapd.lockspace.member import Member
from snapd.units import SECOND

LOOK_AGAIN = SECOND // 50
"""After a transaction: by then the mirror shows it; if not, the same is sent again, which is harmless."""


class Reservation:
    """``step`` is called whenever the mirror changed."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._wanted = ""
        self._done: Callable[[CsnapError | None], None] | None = None
        self._busy = False
        self._over = 0  # create_revision of a key that was released: its deletion may not be shown yet

    @property
    def held(self) -> bool:
        """Whether it is ours, and asked for."""
        return bool(self._wanted) and self._done is None and self._mine() is not None

    def _mine(self) -> KeyValue | None:
        """Our key, unless it is one of a creation that is over."""
        kv = self._member.mirror.creations.get(self._member.settings.node)
        return kv if kv is not None and kv.create_revision != self._over else None

    def ask(self, name: str, done: Callable[[CsnapError | None], None]) -> None:
        """``done(None)``: nobody else creates a snapshot until ``release``. Refused names who does."""
        self._wanted, self._done = name, done
        self.step()

    def release(self) -> None:
        """The creation has ended. Who still waits for ``done`` hears that nothing was reserved."""
        mine = self._mine()
        if mine is not None:
            self._over = mine.create_revision
        self._wanted, done, self._done = "", self._done, None
        if done is not None:
            done(LockspaceError("etcd has not answered in time: try again"))
        self.step()

    def resync(self) -> None:
        self._busy = False

    def step(self) -> None:
        member = self._member
        node, creations = member.settings.node, member.mirror.creations
        if not member.session.usable or not member.mirror.ready:
            return
        key = member.keys.creation(node)
        found = creations.get(node)
        if found is not None and not self._wanted:
            self._over = found.create_revision
        mine = self._mine()
        if found is not None and mine is None:
            self._send((Compare(key, Target.CREATE, self._over),), Delete(key))
        elif self._done is not None:
            others = {other: kv.value.decode(errors="replace") for other, kv in creations.items() if other != node}
            if mine is not None:
                done, self._done = self._done, None
                done(None)
            elif others:
                done, self._done, self._wanted = self._done, None, ""
                who = ", ".join(f"{other} is creating snapshot {name}" for other, name in others.items())
                done(Refused(f"{who}: try again when that is done"))
            else:
                put = Put(key, self._wanted.encode())
                self._send((empty(member.keys.creations),), put)

    def _send(self, conditions: tuple[Compare, ...], operation: Operation) -> None:
        if self._busy:
            return
        self._busy = True
        member = self._member

        def answered(result: TxnResult | None) -> None:
            self._busy = False
            member.timers.call_at(member.timers.now() + LOOK_AGAIN, self.step)

        member.session.txn(conditions, (operation,), (), answered)
