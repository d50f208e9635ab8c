"""Every member's part in taking a snapshot: open the COW device, say so under ``o/<store>/<node>``, or forget it.

The keys are on the lease: a member that dies has not opened anything. An empty value is yes; else it says why not.
"""

from __future__ import annotations

from dataclasses import dataclass

from snapd.lockspace.kv import Delete, Operation, Put, TxnResult
from snapd.lockspace.member import Member
from snapd.lockspace.snapshots import spec_of
from snapd.messages import Forget, Prepare, Prepared
from snapd.units import SECOND

MAX_REASON = 500
"""Letters of a reason that are kept."""


@dataclass(slots=True)
class _Opening:
    request: int
    answer: bytes | None = None  # None: the worker has not said


class Preparation:
    """``step`` is called whenever the mirror changed."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._openings: dict[str, _Opening] = {}  # store -> what this host's worker says
        self._requests = 0
        self._busy = False

    def resync(self) -> None:
        self._busy = False

    def prepared(self, message: Prepared) -> None:
        for opening in self._openings.values():
            if opening.request == message.request:
                opening.answer = message.error[:MAX_REASON].encode()
        if self._member.session.usable:
            self.step()

    def step(self) -> None:
        """Ask the worker about what is being created; tell the others; tidy up."""
        member = self._member
        records = {record.store: record for record in member.snapshots()}
        for store, record in records.items():
            if record.state == "creating" and store not in self._openings:
                self._requests += 1
                self._openings[store] = _Opening(self._requests)
                member.effects.send(Prepare(self._requests, spec_of(record)))
        for store in [store for store in self._openings if store not in records]:
            del self._openings[store]
            member.effects.send(Forget(store))
        for store in [store for store in self._openings if records[store].state != "creating"]:
            del self._openings[store]
        self._tell()

    def _tell(self) -> None:
        """Make our keys say what is so."""
        member, node = self._member, self._member.settings.node
        told = {store: nodes[node].value for store, nodes in member.mirror.opened.items() if node in nodes}
        operations: list[Operation] = [
            Delete(member.keys.opened(store, node)) for store in told if store not in self._openings
        ]
        for store, opening in self._openings.items():
            if opening.answer is not None and told.get(store) != opening.answer:
                operations.append(Put(member.keys.opened(store, node), opening.answer, member.session.lease))
        if self._busy or not operations:
            return
        self._busy = True

        def answered(result: TxnResult | None) -> None:
            self._busy = False
            # The mirror shows it in a moment; until then the same would be put again.
            member.timers.call_at(member.timers.now() + SECOND // 50, self._again)

        member.session.txn((), tuple(operations), (), answered)

    def _again(self) -> None:
        if self._member.session.usable and self._member.mirror.ready:
            self.step()
