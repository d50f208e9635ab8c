"""The store types of csnap, registered."""

from __future__ import annotations

from snapd.exstore.clusterized import Clusterized
from snapd.exstore.persistent import Persistent
from snapd.exstore.registry import Registry
from snapd.exstore.transient import Transient


def store_types() -> Registry:
    """Return a registry of every type: ``persistent``, ``transient``, and what can be clusterized of them."""
    registry = Registry(Clusterized)
    registry.register(Persistent)
    registry.register(Transient)
    return registry
