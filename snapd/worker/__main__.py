"""``python -m snapd.worker``: csnap-io. Started by the control process only (see launch.py)."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import signal
import socket
import sys
from dataclasses import fields

from snapd import counters
from snapd.errors import CsnapError
from snapd.messages import Fatal, encode
from snapd.worker.launch import Descriptors, WorkerSettings
from snapd.worker.main import Worker
from snapd.worker.pages import DEADLINE_BYTES, attach


def main() -> int:
    parser = argparse.ArgumentParser(prog="csnap-io", description="The I/O process of csnap; started by csnapd.")
    for field in fields(Descriptors):
        parser.add_argument(f"--{field.name}", type=int, required=True, metavar="FD")
    given = Descriptors(**vars(parser.parse_args()))
    for fd in given.all():
        os.set_inheritable(fd, False)
    faulthandler.enable()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the control process decides when to stop
    sock = socket.socket(fileno=given.channel)
    try:
        settings = WorkerSettings.from_bytes(os.pread(given.settings, 1 << 16, 0))
        worker = Worker(
            settings, sock, attach(given.deadline, DEADLINE_BYTES), attach(given.counters, counters.PAGE_BYTES)
        )
    except CsnapError as error:
        sock.setblocking(True)
        sock.send(encode(Fatal(str(error))))
        return 1
    gc.collect()
    gc.freeze()  # nothing of the start-up is looked at again; what runs makes few cycles
    return worker.run()


if __name__ == "__main__":
    sys.exit(main())
