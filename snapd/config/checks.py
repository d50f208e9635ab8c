"""Checks of single values that several sections share. Each raises ValueError saying what was expected."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""Names of volumes and nodes: they become parts of keys, units and labels."""


def string(value: Any) -> str:
    if not isinstance(value, str) or not value or any(ord(letter) < 0x20 for letter in value):
        raise ValueError("expected a text")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def whole(least: int, most: int, unit: str) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"expected a whole number of {unit} from {least} to {most}")
        return value

    return check


def name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("expected 1 to 63 letters, digits, '.', '_', '-', not beginning with one of these")
    return value


def absolute(value: Any) -> str:
    if not string(value).startswith("/"):
        raise ValueError("expected an absolute path")
    return os.path.normpath("/" + str(value).lstrip("/"))
