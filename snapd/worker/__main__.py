"""``python -m snapd.worker``: csnap-io. Started by the control process only (see launch.py)."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
import traceback

from snapd import counters, trace
from snapd.errors import CsnapError
from snapd.messages import Fatal, encode
from snapd.worker.launch import Descriptors, WorkerSettings
from snapd.worker.main import Worker
from snapd.worker.pages import DEADLINE_BYTES, attach
from snapd.worker.process import protect


def main() -> int:
    given = Descriptors.from_arguments(sys.argv[1:])
    for fd in given.all():
        os.set_inheritable(fd, False)
    faulthandler.enable()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the control process decides when to stop
    sock = socket.socket(fileno=given.channel)
    try:
        settings = WorkerSettings.from_bytes(os.pread(given.settings, 1 << 16, 0))
        deadline, words = attach(given.deadline, DEADLINE_BYTES), attach(given.counters, counters.PAGE_BYTES)
        page = trace.Page(attach(given.trace, trace.PAGE_BYTES))
        worker = Worker(settings, sock, deadline, words, page, protect(), given.taken)
    except (CsnapError, OSError, MemoryError) as error:
        return fail(sock, str(error))
    gc.collect()
    gc.freeze()  # nothing of the start-up is looked at again; what runs makes few cycles
    try:
        return worker.run()
    except Exception as error:
        traceback.print_exc()
        return fail(sock, f"{type(error).__name__}: {error}")


def fail(sock: socket.socket, reason: str) -> int:
    """Tell the control process why this is the end, if it is still there."""
    sock.setblocking(True)
    with contextlib.suppress(OSError):
        sock.send(encode(Fatal(reason[:1000])))
    return 1


if __name__ == "__main__":
    sys.exit(main())
