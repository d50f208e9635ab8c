"""SCSI-3 persistent reservations of one LUN, as a target keeps them: keys by initiator, one reservation.

``Path`` is one initiator's: it answers the ioctls with statuses, like the kernel. Write exclusive, registrants only.
"""

from __future__ import annotations

from snapd.helper import reservations as pr
from snapd.helper.reservations import Reservations

GOOD, CHECK_CONDITION, CONFLICT = 0x00, 0x02, 0x18
WERO = pr.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


class Lun:
    """``aborts`` False: it knows no PREEMPT AND ABORT. ``attention``: unit attentions still to be reported, by path."""

    def __init__(self, aborts: bool = True) -> None:
        self.keys: dict[str, int] = {}
        self.holder = ""
        self.aborts = aborts
        self.attention: dict[str, int] = {}
        self.log: list[str] = []

    def may_write(self, initiator: str) -> bool:
        return not self.holder or initiator in self.keys

    def path(self, initiator: str) -> Path:
        return Path(self, initiator)


class Path(Reservations):
    """One initiator's path to the LUN; ``failure`` is returned instead of an answer, as a path that is gone does."""

    def __init__(self, lun: Lun, initiator: str) -> None:
        super().__init__(-1, f"/dev/{initiator}")
        self._lun, self._initiator = lun, initiator
        self.failure = 0

    def _once(self, request: int, argument: bytes) -> int:
        if self.failure:
            return self.failure
        lun, me = self._lun, self._initiator
        if lun.attention.get(me, 0):
            lun.attention[me] -= 1
            return CHECK_CONDITION
        if request == pr.REGISTER:
            old, new, flags, _ = pr.REGISTRATION.unpack(argument)
            return self._register(old, new, bool(flags & pr.IGNORE_KEY))
        if request in (pr.RESERVE, pr.RELEASE):
            key, kind, _ = pr.RESERVATION.unpack(argument)
            assert kind == WERO
            if lun.keys.get(me) != key:
                return CONFLICT
            if request == pr.RELEASE:
                lun.holder = "" if lun.holder == me else lun.holder
                return GOOD
            if lun.holder in ("", me):
                lun.holder = me
                return GOOD
            return CONFLICT
        assert request in (pr.PREEMPT, pr.PREEMPT_ABORT)
        if request == pr.PREEMPT_ABORT and not lun.aborts:
            return CHECK_CONDITION
        ours, victim, _, _ = pr.PREEMPTION.unpack(argument)
        return self._preempt(ours, victim, "abort" if request == pr.PREEMPT_ABORT else "keep")

    def _register(self, old: int, new: int, ignore: bool) -> int:
        lun, me = self._lun, self._initiator
        if not ignore and lun.keys.get(me, 0) != old:
            return CONFLICT
        if new:
            lun.keys[me] = new
        elif me in lun.keys:
            del lun.keys[me]
            if lun.holder == me:
                lun.holder = ""
        return GOOD

    def _preempt(self, ours: int, victim: int, what: str) -> int:
        lun, me = self._lun, self._initiator
        victims = [initiator for initiator, key in lun.keys.items() if key == victim]
        if lun.keys.get(me) != ours or not victims:
            return CONFLICT
        for initiator in victims:
            del lun.keys[initiator]
            if lun.holder == initiator:
                lun.holder = me
        lun.log.append(f"{me} preempts {victim:x}: {what}")
        return GOOD
