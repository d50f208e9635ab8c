"""[export]: directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from snapd.config.checks import absolute
from snapd.config.table import Table, shown

SOCKET_PATH_MOST = 107
"""Bytes: sockaddr_un has 108 with the terminating zero."""

ADMIN_SOCKET, NBD_SOCKET, HELPER_SOCKET, LOCK_FILE = "admin.sock", "nbd.sock", "helper.sock", "lock"


@dataclass(frozen=True, slots=True)
class ExportConfig:
    directory: Path

    @property
    def admin(self) -> str:
        return str(self.directory / ADMIN_SOCKET)

    @property
    def nbd(self) -> str:
        return str(self.directory / NBD_SOCKET)

    @property
    def helper(self) -> str:
        return str(self.directory / HELPER_SOCKET)

    @property
    def lock(self) -> str:
        return str(self.directory / LOCK_FILE)


def read(table: Table) -> ExportConfig:
    directory = table.get("directory", absolute)
    table.finish()
    export = ExportConfig(Path(directory))
    for path in (export.admin, export.nbd, export.helper):
        length = len(os.fsencode(path))
        if length > SOCKET_PATH_MOST:
            raise table.error(
                "directory",
                f"the socket path {path} has {length} bytes, at most {SOCKET_PATH_MOST} fit",
                shown(directory),
            )
    return export
