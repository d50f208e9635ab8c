"""Whether a datagram socket of systemd would take a message now, asked before systemd-python is.

Its notify and journal.send hold the interpreter's lock while they wait, so a journal or a systemd that does not read
would stop every thread of this process, and with them the lease (measured with version 235: as long as the reader
was silent). A full socket is therefore never written to.
"""

from __future__ import annotations

import select
import socket


def is_open(address: str) -> bool:
    """Whether somebody listens on the socket (``@``: abstract) and has room for a datagram."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            return False
        poll = select.poll()
        poll.register(probe, select.POLLOUT)
        return any(events == select.POLLOUT for _, events in poll.poll(0))
