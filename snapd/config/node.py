"""[node]: optional: name (default: the host's name), machine_id."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any

from snapd.config.checks import name
from snapd.config.table import Table


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """``machine_id`` empty: /etc/machine-id."""

    name: str
    machine_id: str


def machine_id(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{32}", value):
        raise ValueError("expected 32 hexadecimal digits, as in /etc/machine-id")
    return value


def read(table: Table) -> NodeConfig:
    node = NodeConfig(table.get("name", name, ""), table.get("machine_id", machine_id, ""))
    table.finish()
    if not node.name:
        try:
            return NodeConfig(name(socket.gethostname()), node.machine_id)
        except ValueError as error:
            raise table.error("name", f"missing, and the host's name does not serve: {error}") from None
    return node
