"""[metrics]: optional: listen."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from snapd.config.table import Table


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``host`` empty: no endpoint. Port 0: any free one, shown by ``csnap status``."""

    host: str
    port: int


def listen(value: Any) -> tuple[str, int]:
    """An address, never a host's name: nothing here waits for DNS."""
    if value == "":
        return "", 0
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})", value if isinstance(value, str) else "", re.ASCII)
    try:
        if match is None or int(match[3]) > 65535:
            raise ValueError
        host = str(ipaddress.ip_address(match[1] or match[2]))
    except ValueError:
        raise ValueError('expected an IP address and a port like "127.0.0.1:9942", or "" for none') from None
    return host, int(match[3])


def read(table: Table) -> MetricsConfig:
    host, port = table.get("listen", listen, ("127.0.0.1", 9942))
    table.finish()
    return MetricsConfig(host, port)
