"""Is this still the etcd we know? Every response must come from one history that only grows.

An etcd restored from a backup answers with another cluster id or, if it was restored under its old names, with
a revision that we have passed already. Either is the loss of all holds. Requests overlap, so a response is held
against the newest revision seen *when its request was sent*: linearizability promises that much and no more.
Only answers that are linearizable or went through raft carry such a promise: ranges, transactions, grants and
revokes. Keepalives, statuses and watches are filled in by one member that may lag: only their cluster id counts.
"""

from __future__ import annotations

from snapd.lockspace.kv import Failure


class Lineage:
    """``newest`` is the newest revision seen so far: note it when sending."""

    def __init__(self) -> None:
        self.newest = 0
        self._cluster_id = 0

    def check(self, cluster_id: int, revision: int = 0, floor: int = 0) -> Failure | None:
        """Return a Failure if this answer is of another history. ``floor``: ``newest`` when the request was sent."""
        if self._cluster_id and cluster_id != self._cluster_id:
            return _lost(f"etcd cluster {cluster_id:x} answers, expected {self._cluster_id:x}")
        self._cluster_id = cluster_id
        if revision < floor:
            return _lost(f"etcd answers at revision {revision}, expected at least {floor}: restored from a backup?")
        self.newest = max(self.newest, revision)
        return None


def _lost(message: str) -> Failure:
    return Failure(message, ambiguous=True, wrong_cluster=True)
