"""Standard input and output <-> a unix socket, or host:port: ``python relay.py ADDRESS``. How the guest's TCP gets out.

csnap listens on unix sockets only; QEMU runs this for each connection that the guest makes (tests only).
"""

from __future__ import annotations

import os
import select
import socket
import sys

PIECE = 1 << 16


def relay(path: str, taken: int = 0, given: int = 1) -> None:
    """Copy until either end is closed."""
    host, _, port = path.rpartition(":")
    with socket.socket(socket.AF_INET if host else socket.AF_UNIX) as server:
        server.connect((host, int(port)) if host else path)
        while True:
            readable, _, _ = select.select([taken, server], [], [])
            if taken in readable:
                data = os.read(taken, PIECE)
                if not data:
                    return
                server.sendall(data)
            if server in readable:
                data = server.recv(PIECE)
                if not data:
                    return
                view = memoryview(data)
                while view:
                    view = view[os.write(given, view) :]


if __name__ == "__main__":
    relay(sys.argv[1])
