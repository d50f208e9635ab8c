"""Store types by name, and ``clusterized_<core>`` around any core that allows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from snapd.errors import Refused
from snapd.exstore.base import ExceptionStore, StoreConfig, StoreType

PREFIX = "clusterized_"

Wrapper = Callable[[StoreType, StoreConfig], ExceptionStore]


@dataclass(frozen=True, slots=True)
class Clusterized:
    """The type ``clusterized_<core>``: constructs the core itself, then wraps it."""

    core: StoreType
    wrap: Wrapper
    rereadable: bool = False
    shared: bool = False

    @property
    def name(self) -> str:
        return PREFIX + self.core.name

    def __call__(self, config: StoreConfig) -> ExceptionStore:
        return self.wrap(self.core, config)


class Registry:
    """Finds every registered type by its name; the clusterized ones are derived, not registered."""

    def __init__(self, wrap: Wrapper) -> None:
        self._wrap = wrap
        self._types: dict[str, StoreType] = {}

    def register(self, kind: StoreType) -> None:
        """Add a type. Raises Refused for a bad or taken name, or requirements that are not declared."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", kind.name) or kind.name.startswith(PREFIX):
            raise Refused(f"store type {kind.name!r}: expected lower-case letters, digits, _, and no {PREFIX!r}")
        if kind.name in self._types:
            raise Refused(f"store type {kind.name!r}: is registered already")
        for declaration in ("rereadable", "shared"):
            if not isinstance(getattr(kind, declaration, None), bool):
                raise Refused(f"store type {kind.name!r}: does not declare whether it is {declaration}")
        self._types[kind.name] = kind

    def names(self) -> list[str]:
        """Every name ``find`` knows, the clusterized ones included, sorted."""
        wrapped = [PREFIX + name for name, kind in self._types.items() if kind.rereadable and not kind.shared]
        return sorted([*self._types, *wrapped])

    def find(self, name: str) -> StoreType:
        """Return the type of that name. Raises Refused for an unknown one and for a core that cannot be wrapped."""
        core = name.removeprefix(PREFIX)
        kind = self._types.get(core)
        if kind is None:
            raise Refused(f"store type {name!r}: unknown; known are {', '.join(self.names())}")
        if core == name:
            return kind
        if not kind.rereadable:
            raise Refused(f"store type {name!r}: {core!r} cannot be re-read, so no other host could see its exceptions")
        if kind.shared:
            raise Refused(f"store type {name!r}: {core!r} is shared: changing one store would change another unseen")
        return Clusterized(kind, self._wrap)
