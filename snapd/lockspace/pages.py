"""Reading a big range in pages at one revision.

32,768 holds are 2.8 MB and gRPC's default limit is 4 MiB, so nothing large is asked for in one piece. The first
page is linearizable and fixes the revision; the others are read at it, so together they are one moment.
"""

from __future__ import annotations

from collections.abc import Callable

from snapd.lockspace.kv import Failure, KeyValue, Kv, Range, RangeResult, prefix_end

PAGE = 1_000  # keys; at about 90 bytes each


def read_prefix(
    kv: Kv,
    prefix: str,
    timeout: int,
    done: Callable[[tuple[KeyValue, ...] | Failure, int], None],
    page: int = PAGE,
) -> None:
    """Call ``done(all kvs under prefix, revision)``, or ``done(failure, 0)``. ``timeout`` (ns) is for each page."""
    found: list[KeyValue] = []
    end = prefix_end(prefix)
    at = 0

    def read(key: str) -> None:
        kv.range(Range(key, end, revision=at, limit=page), timeout, received)

    def received(result: RangeResult | Failure, revision: int) -> None:
        nonlocal at
        if isinstance(result, Failure):
            done(result, 0)
            return
        at = at or revision
        found.extend(result.kvs)
        if result.more:
            read(result.kvs[-1].key + "\0")  # the key after the last one
        else:
            done(tuple(found), at)

    read(prefix)
