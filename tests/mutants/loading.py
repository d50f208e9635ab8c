"""Importing a module with its source changed, in memory: no file is written, no cache is used."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from tests.mutants.catalogue import Mutant


class NotApplicable(Exception):
    """The code is no longer what the mutant changes."""


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> Any:
        source = self.get_source(fullname) or ""
        for old, new in self._mutant.changes:
            if source.count(old) != 1:
                raise NotApplicable(f"{self._mutant.name}: {source.count(old)} times in {fullname}: {old!r}")
            source = source.replace(old, new)
        return compile(source, self.path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Put first into ``sys.meta_path`` before the module is imported."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None and spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self._mutant)
        spec.cached = None
        return spec


def apply(mutant: Mutant) -> None:
    """From now on the module is imported with its bug."""
    assert mutant.module not in sys.modules, f"{mutant.module} has been imported already"
    sys.meta_path.insert(0, Finder(mutant))


def check(mutant: Mutant) -> None:
    """Raise NotApplicable unless its text is where it should be."""
    spec = Finder(mutant).find_spec(mutant.module, _package_path(mutant.module))
    assert spec is not None and isinstance(spec.loader, _Loader)
    spec.loader.get_code(mutant.module)


def _package_path(module: str) -> Any:
    __import__(module.rpartition(".")[0])
    return sys.modules[module.rpartition(".")[0]].__path__
