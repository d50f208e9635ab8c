"""A file that only root can read, named the same for the daemon and for who administers it: ``credential:etcd.ca``.

    in the unit          $CREDENTIALS_DIRECTORY/etcd.ca         LoadCredential=etcd.ca:csnap.<volume>.ca
    at the command line  /etc/credstore/csnap.<volume>.ca       as root; wherever else systemd looks, in its order

The name in the store is ``csnap.<volume>.`` and the credential's, without ``etcd.``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapd.config.checks import absolute, string

PREFIX = "credential:"
STORES = (Path("/etc/credstore"), Path("/run/credstore"), Path("/usr/lib/credstore"))
"""Where systemd looks for a credential that LoadCredential= names without a path."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


def secret(volume: str) -> Callable[[Any], str]:
    """Return a check for the path of a file, or a credential of that volume; it gives the path."""

    def check(value: Any) -> str:
        if not string(value).startswith(PREFIX):
            return _absolute(value)
        name = str(value).removeprefix(PREFIX)
        if not _NAME.fullmatch(name):
            raise ValueError("expected credential: and a name of letters, digits, '.', '_', '-'")
        return str(_find(volume, name))

    return check


def _absolute(value: Any) -> str:
    try:
        return absolute(value)
    except ValueError:
        raise ValueError("expected an absolute path, or credential:NAME") from None


def _find(volume: str, name: str) -> Path:
    """The file, whether it is there or not: what does not need it does not fail for it."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if directory:
        return Path(directory) / name
    paths = [store / f"csnap.{volume}.{name.removeprefix('etcd.')}" for store in STORES]
    return next((path for path in paths if _is_there(path)), paths[0])


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # not allowed to look
        return False
