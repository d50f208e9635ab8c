"""The names of all keys under ``/csnap/<cluster_uuid>/``: built here and parsed here, nowhere else.

    format               protocol in force, sizes, identity of the origin
    s/<name>             a snapshot
    v/<store>            counter; mod_revision is what members compare
    x/<store>/<node>     first COW chunk behind the extents that a member has reserved
    c/<node>             this member formats a COW device for a snapshot, value: its name; one at a time
    o/<store>/<node>     on the lease: this member opened that COW device; value "" or why it could not
    m/<node>             member record
    a/<node>             on the lease: liveness; value: the incarnation
    h/<res>/EX/<node>    hold; create_revision is its token
    h/<res>/CR/<node>
    q/<res>/<node>       on the lease: ticket; create_revision is its place in the queue

A resource is ``table``, ``region/<n>`` or ``tail/<store>``, so a hold's key has four or five parts. Names of
nodes and snapshots hold no slash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from snapd.errors import Refused
from snapd.messages import CR, EX, MODE_NAMES

ROOT = "/csnap/"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""Names of nodes and snapshots: they become parts of keys, exports and labels."""

_MODES = {"CR": CR, "EX": EX}
_STORE = re.compile(r"[0-9a-f-]{36}", re.ASCII)
_RESOURCE = re.compile(rf"table|region/(0|[1-9][0-9]{{0,9}})|tail/{_STORE.pattern}", re.ASCII)


def check_name(what: str, name: str) -> None:
    """Raise Refused unless ``name`` can be part of a key."""
    if not NAME.fullmatch(name):
        raise Refused(f"{what} {name!r}: expected 1 to 63 letters, digits, '.', '_', '-', first a letter or digit")


def kind(resource: str) -> str:
    """table, region or tail."""
    return resource.partition("/")[0]


def is_resource(text: str) -> bool:
    return _RESOURCE.fullmatch(text) is not None


def is_store(text: str) -> bool:
    """Whether it looks like a store's UUID."""
    return _STORE.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A key taken apart: ``kind`` is its first part; the other fields are those it has."""

    kind: str
    node: str = ""
    resource: str = ""
    mode: int = 0
    store: str = ""
    name: str = ""


class Keys:
    """The keys of one cluster."""

    def __init__(self, cluster_uuid: str) -> None:
        self.prefix = f"{ROOT}{cluster_uuid}/"
        self.format = f"{self.prefix}format"
        self.snapshots = f"{self.prefix}s/"
        self.counters = f"{self.prefix}v/"
        self.creations = f"{self.prefix}c/"
        self.members = f"{self.prefix}m/"

    def snapshot(self, name: str) -> str:
        return f"{self.prefix}s/{name}"

    def counter(self, store: str) -> str:
        return f"{self.prefix}v/{store}"

    def extent(self, store: str, node: str = "") -> str:
        """Of one node; without one: the prefix of all."""
        return f"{self.prefix}x/{store}/{node}"

    def creation(self, node: str) -> str:
        return f"{self.prefix}c/{node}"

    def opened(self, store: str, node: str = "") -> str:
        return f"{self.prefix}o/{store}/{node}"

    def member(self, node: str) -> str:
        return f"{self.prefix}m/{node}"

    def alive(self, node: str) -> str:
        return f"{self.prefix}a/{node}"

    def hold(self, resource: str, mode: int, node: str) -> str:
        return f"{self.prefix}h/{resource}/{MODE_NAMES[mode]}/{node}"

    def holds(self, resource: str, mode: int = 0) -> str:
        """The prefix of all holds, or of those in ``mode``."""
        return f"{self.prefix}h/{resource}/{MODE_NAMES[mode]}/" if mode else f"{self.prefix}h/{resource}/"

    def ticket(self, resource: str, node: str) -> str:
        return f"{self.prefix}q/{resource}/{node}"

    def tickets(self, resource: str) -> str:
        return f"{self.prefix}q/{resource}/"

    def parse(self, key: str) -> Parsed | None:
        """Take a key of ours apart; None if it is not one."""
        if not key.startswith(self.prefix):
            return None
        parts = key[len(self.prefix) :].split("/")
        kind, rest = parts[0], parts[1:]
        if kind == "h" and len(rest) in (3, 4) and rest[-2] in _MODES:
            return self._locked(Parsed("h", rest[-1], "/".join(rest[:-2]), _MODES[rest[-2]]))
        if kind == "q" and len(rest) in (2, 3):
            return self._locked(Parsed("q", rest[-1], "/".join(rest[:-1])))
        if kind in ("m", "a", "c") and len(rest) == 1:
            return Parsed(kind, rest[0])
        if kind in ("x", "o") and len(rest) == 2 and is_store(rest[0]):
            return Parsed(kind, rest[1], store=rest[0])
        if kind == "v" and len(rest) == 1 and is_store(rest[0]):
            return Parsed(kind, store=rest[0])
        if kind == "s" and len(rest) == 1:
            return Parsed(kind, name=rest[0])
        return Parsed(kind) if kind == "format" and not rest else None

    def _locked(self, parsed: Parsed) -> Parsed | None:
        return parsed if is_resource(parsed.resource) and parsed.node else None
