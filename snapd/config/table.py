"""One table of the file: hands out its values checked, then refuses what nobody asked for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from snapd.errors import ConfigError, Refused

T = TypeVar("T")


class Table:
    """One table of the file: hands out its values checked, then refuses what nobody asked for."""

    def __init__(self, path: Path, name: str, values: dict[str, Any]) -> None:
        self._path = path
        self._name = name
        self._values = values
        self._known: list[str] = []

    def error(self, key: str, expected: str, shown: str = "") -> ConfigError:
        where = f"{self._path}: [{self._name}] {key}" if self._name else f"{self._path}: [{key}]"
        return ConfigError(f"{where}{f' = {shown}' if shown else ''}: {expected}")

    def table(self, key: str, optional: bool = False) -> Table:
        self._known.append(key)
        found = self._values.get(key, {} if optional else None)
        name = f"{self._name}.{key}" if self._name else key
        if found is None:
            raise ConfigError(f"{self._path}: [{name}]: missing")
        if not isinstance(found, dict):
            raise self.error(key, "expected a table")  # not shown: a secret of [fencing] may stand there
        return Table(self._path, name, found)

    def get(self, key: str, check: Callable[[Any], T], default: T | None = None, why: str = "") -> T:
        """Return the checked value. ``check`` raises ValueError or Refused saying what was expected."""
        self._known.append(key)
        if key not in self._values:
            if default is None:
                raise self.error(key, f"missing{why}")
            return default
        value = self._values[key]
        try:
            return check(value)
        except (ValueError, Refused) as error:
            raise self.error(key, str(error), shown(value)) from None

    def texts(self) -> dict[str, str]:
        """Return every key as text for a fencing agent. Errors do not show the values: they may be secret."""
        return {key: self._text(key, value) for key, value in self._values.items()}

    def _text(self, key: str, value: Any) -> str:
        self._known.append(key)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key, re.ASCII):
            raise self.error(key, "expected a key of letters, digits, '_' and '-'")
        if isinstance(value, bool):
            return str(int(value))
        try:
            text = str(value)
        except ValueError:  # a number of more than 4,300 digits
            text = "\n"
        if not isinstance(value, str | int | float) or any(ord(letter) < 0x20 for letter in text):
            raise self.error(key, "expected a text or a number without line breaks")
        return text

    def names(self) -> list[str]:
        return list(self._values)

    def finish(self) -> None:
        for key in self._values:
            if key not in self._known:
                close = difflib.get_close_matches(key, self._known, 1)
                hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(self._known)}"
                raise self.error(key, f"unknown; {hint}")


def shown(value: Any) -> str:
    """Return ``value`` about as it stands in the file, shortened, and without the password that an address may hold."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = f'"{value}"' if isinstance(value, str) else repr(value)
    except ValueError:  # a number of more than 4,300 digits in it
        return "..."
    text = re.sub(r"//[^/@]*@", "//...@", text)
    return text if len(text) <= 120 else text[:117] + "..."
