"""The file that support is sent: what the doctor found and what else it would ask for, without secrets.

The configuration is written anew from its parsed values, so comments, which may hold anything, do not go with it; what
[fencing.options] and [fencing.hosts] say is left out, and so are keys and certificates. Of a file that csnap refuses
only the names are kept: a password may stand under any of them. No data of the volume is read.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from snapd.errors import CsnapError

HIDDEN = "(removed)"
MODE = 0o600


def without_secrets(text: str, refused: bool) -> str:
    """The configuration as TOML, secrets removed; everything, if it was ``refused``.

    Raises CsnapError if it is no TOML: then nothing of it is shown.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError):
        raise CsnapError("the configuration is no TOML, so nothing of it was taken along") from None
    if refused:
        values = _hide(values)
    fencing = values.get("fencing")
    if isinstance(fencing, dict):
        for name in ("options", "hosts"):
            if name in fencing:
                fencing[name] = _hide(fencing[name])
    return "\n".join(_lines(values, "")) + "\n"


def _hide(value: Any) -> Any:
    return {key: _hide(inner) for key, inner in value.items()} if isinstance(value, dict) else HIDDEN


def _lines(values: Mapping[str, Any], name: str) -> list[str]:
    lines = [f"\n[{name}]"] if name else []
    for key, value in values.items():
        if not isinstance(value, dict):
            lines.append(f"{_key(key)} = {json.dumps(value, default=str)}")
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{name}.{_key(key)}" if name else _key(key))
    return lines


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text, re.ASCII) else json.dumps(text)


def write(path: Path, parts: Mapping[str, str]) -> None:
    """Make the archive at ``path``, readable by its owner alone. Raises CsnapError if it cannot be, or is there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    except FileExistsError:
        raise CsnapError(f"{path}: is there already, and is not overwritten") from None
    except OSError as error:
        raise CsnapError(f"{path}: {error.strerror}") from None
    try:
        with open(descriptor, "wb") as file:
            _pack(file, path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar"), parts)
    except OSError as error:
        path.unlink(missing_ok=True)  # half of it is no use, and in the way of the next attempt
        raise CsnapError(f"{path}: {error.strerror}") from None


def _pack(file: BinaryIO, folder: str, parts: Mapping[str, str]) -> None:
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in parts.items():
            data = text.encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), MODE
            archive.addfile(entry, io.BytesIO(data))
