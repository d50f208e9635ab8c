"""TCP ports of loopback for servers that are about to be started."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 10_000
TRIES = 1000


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on now.

    Not those that the kernel gives to whoever connects: one of them can be taken as the source of a connection before
    the server listens.
    """
    end = max(int(EPHEMERAL.read_text().split()[0]), LOWEST + TRIES)
    ports: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(range(LOWEST, end), TRIES):
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError(f"{count} free ports were not found in {LOWEST} to {end - 1}")
