"""The lock transactions as values: compares and operations, nothing sent. ALIVE is added by the session.

    acquire    no conflicting hold, no ticket                    -> hold        else: a ticket
    convert    my CR, no other hold, empty queue                 -> EX          else: the CR is given up for a ticket
    grant      my ticket, no conflicting hold                    -> hold, the ticket goes
    confirm    a hold of mine whose granting answer was lost     -> read what a grant reads
    release    my hold                                           -> less or nothing, counters, extent

Every grant reads all counters, a table's the snapshots too, a tail's the extents, in the same transaction: what a
member may believe under a hold is of the moment of the grant or later.
"""

from __future__ import annotations

from dataclasses import dataclass

from snapd.lockspace.keys import Keys, kind
from snapd.lockspace.kv import (
    Compare,
    Delete,
    KeyValue,
    Operation,
    Put,
    Range,
    RangeResult,
    Target,
    Txn,
    TxnResult,
    prefix_end,
)
from snapd.lockspace.records import TicketRecord
from snapd.messages import CR, EX

Branches = tuple[tuple[Compare, ...], tuple[Operation, ...], tuple[Operation, ...]]
"""IF, THEN, ELSE, as ``Session.txn`` takes them."""

Ranges = tuple[tuple[KeyValue, ...], ...]


@dataclass(frozen=True, slots=True)
class Who:
    """In whose name a transaction is made; the lease and ALIVE are those of the moment."""

    keys: Keys
    node: str
    incarnation: str
    lease: int
    alive: Compare


def empty(prefix: str) -> Compare:
    """No key begins with ``prefix``."""
    return Compare(prefix, Target.CREATE, 0, prefix_end(prefix))


def _free(who: Who, resource: str, mode: int) -> Compare:
    """No hold conflicts with ``mode``; this member has none."""
    return empty(who.keys.holds(resource, EX) if mode == CR else who.keys.holds(resource))


def _ticket(who: Who, resource: str, mode: int) -> Put:
    record = TicketRecord(mode, who.incarnation)
    return Put(who.keys.ticket(resource, who.node), record.to_bytes(), who.lease)


def _hold(who: Who, resource: str, mode: int) -> Put:
    return Put(who.keys.hold(resource, mode, who.node), who.incarnation.encode())


def reads(keys: Keys, resource: str) -> tuple[Range, ...]:
    """What a grant reads: counters; then the snapshots, or the extents of the tail's store."""
    ranges = [keys.counters]
    if resource == "table":
        ranges.append(keys.snapshots)
    elif kind(resource) == "tail":
        ranges.append(keys.extent(resource.partition("/")[2]))
    return tuple(Range(prefix, prefix_end(prefix)) for prefix in ranges)


def ranges(result: TxnResult) -> Ranges:
    """The ranges in an answer, in order."""
    return tuple(found.kvs for found in result.results if isinstance(found, RangeResult))


def queue(who: Who, resource: str, mode: int) -> Branches:
    """Just a ticket: of a member that keeps its CR until it is asked for it (the table's exclusive users)."""
    key = who.keys.ticket(resource, who.node)
    return (Compare(key, Target.CREATE, 0),), (_ticket(who, resource, mode),), (Range(key),)


def acquire(who: Who, resource: str, mode: int) -> Branches:
    ticket = who.keys.ticket(resource, who.node)
    return (
        (_free(who, resource, mode), empty(who.keys.tickets(resource))),
        (_hold(who, resource, mode), *reads(who.keys, resource)),
        (Txn((who.alive, Compare(ticket, Target.CREATE, 0)), (_ticket(who, resource, mode),)),),
    )


def convert(who: Who, resource: str, token: int) -> Branches:
    mine = who.keys.hold(resource, CR, who.node)
    shared = who.keys.holds(resource, CR)
    own = Compare(mine, Target.CREATE, token)
    nobody_else = (
        empty(who.keys.holds(resource, EX)),
        Compare(shared, Target.CREATE, 0, mine),
        Compare(mine + "\0", Target.CREATE, 0, prefix_end(shared)),
    )
    ticket = Compare(who.keys.ticket(resource, who.node), Target.CREATE, 0)
    return (
        (own, *nobody_else, empty(who.keys.tickets(resource))),
        (Delete(mine), _hold(who, resource, EX), *reads(who.keys, resource)),
        (Txn((who.alive, own, ticket), (Delete(mine), _ticket(who, resource, EX))),),
    )


def grant(
    who: Who, resource: str, mode: int, ticket: int, hold: int = 0, extra: tuple[Operation, ...] = ()
) -> Branches:
    """``mode`` is what the ticket waits for; ``hold``, if given, what is held at once instead (a snapshot is taken
    under EX's conditions and leaves CR). ``extra``: put in the same transaction."""
    key = who.keys.ticket(resource, who.node)
    return (
        (Compare(key, Target.CREATE, ticket), _free(who, resource, mode)),
        (Delete(key), *extra, _hold(who, resource, hold or mode), *reads(who.keys, resource)),
        (),
    )


def confirm(who: Who, resource: str, mode: int, token: int) -> Branches:
    key = who.keys.hold(resource, mode, who.node)
    return (Compare(key, Target.CREATE, token),), reads(who.keys, resource), ()


def release(
    who: Who,
    resource: str,
    mode: int,
    token: int,
    keep: int,
    extra: tuple[Operation, ...] = (),
    when: tuple[Compare, ...] = (),
    reads: tuple[Range, ...] = (),
) -> Branches:
    """Give up ``mode`` but for ``keep``; ``extra`` (counters, an extent) under the conditions ``when``."""
    key = who.keys.hold(resource, mode, who.node)
    kept = (_hold(who, resource, keep),) if keep else ()
    return (Compare(key, Target.CREATE, token), *when), (Delete(key), *extra, *kept, *reads), ()


def withdraw(who: Who, resource: str, ticket: int, node: str = "") -> Branches:
    """Delete a ticket: an unwanted one of this member, or an old one of ``node``."""
    key = who.keys.ticket(resource, node or who.node)
    return (Compare(key, Target.CREATE, ticket),), (Delete(key),), ()
