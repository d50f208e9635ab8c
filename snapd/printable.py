"""Text from elsewhere (etcd, a device, another process), as a terminal or a line of a log may have it.

What is no printable character is shown by its escape: a terminal obeys control characters, C1 ones too, and line breaks
and marks of direction make one line look like another.
"""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """Return ``text`` without anything that a terminal obeys. What is printable already is not changed."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def one_line(text: object) -> str:
    """The same of an error or a text of any lines, on one."""
    return printable(" ".join(str(text).split()))


def printable_value(value: Any) -> Any:
    """The same of every text in a value of JSON, names of fields included."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [printable_value(inner) for inner in value]
    if isinstance(value, dict):
        return {printable(key): printable_value(inner) for key, inner in value.items()}
    return value
