"""[metrics]: optional: listen; tls_cert, tls_key, tls_client_ca; textfile."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Any

from snapd.config.checks import absolute
from snapd.config.credentials import secret
from snapd.config.export import SOCKET_PATH_MOST
from snapd.config.table import Table

UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``host`` and ``unix`` empty: no endpoint. Port 0: any free one, shown by ``csnap status``.

    tls_*: paths of PEM files; without ``tls_client_ca`` whoever can connect may read. textfile: empty for none.
    """

    host: str
    port: int
    unix: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    textfile: str = ""


def listen(value: Any) -> tuple[str, int, str]:
    """An address, never a host's name: nothing here waits for DNS. Or the path of a unix socket."""
    if value == "":
        return "", 0, ""
    if isinstance(value, str) and value.startswith(UNIX):
        path = absolute(value.removeprefix(UNIX))
        if len(os.fsencode(path)) > SOCKET_PATH_MOST:
            raise ValueError(f"expected a socket path of at most {SOCKET_PATH_MOST} bytes")
        return "", 0, path
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})", value if isinstance(value, str) else "", re.ASCII)
    try:
        if match is None or int(match[3]) > 65535:
            raise ValueError
        host = str(ipaddress.ip_address(match[1] or match[2]))
    except ValueError:
        raise ValueError(
            'expected an IP address and a port like "127.0.0.1:9942", "unix:/path/of.sock", or "" for none'
        ) from None
    return host, int(match[3]), ""


def textfile(value: Any) -> str:
    """node_exporter reads only what ends in .prom: so a file that is being written is not seen."""
    path = absolute(value)
    if not path.endswith(".prom"):
        raise ValueError("expected an absolute path that ends in .prom: node_exporter reads no other file")
    return path


def read(table: Table, volume: str) -> MetricsConfig:
    pem = secret(volume)
    host, port, unix = table.get("listen", listen, ("127.0.0.1", 9942, ""))
    metrics = MetricsConfig(
        host,
        port,
        unix,
        table.get("tls_cert", pem, ""),
        table.get("tls_key", pem, ""),
        table.get("tls_client_ca", pem, ""),
        table.get("textfile", textfile, ""),
    )
    table.finish()
    if bool(metrics.tls_cert) != bool(metrics.tls_key):
        raise table.error("tls_key" if metrics.tls_cert else "tls_cert", "missing: TLS needs both tls_cert and tls_key")
    if metrics.tls_client_ca and not metrics.tls_cert:
        raise table.error("tls_cert", "missing: tls_client_ca asks clients for certificates over TLS")
    if metrics.tls_cert and not host:
        raise table.error("listen", "expected an IP address and a port, because tls_cert is set")
    return metrics
