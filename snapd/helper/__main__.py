"""``python -m snapd.helper CONFIG``: the privileged helper of one volume, in the foreground until SIGTERM.

``--parent PID``: ends with that process, which has started it (a ``csnap serve`` that runs as root).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import sys

from snapd import config as configuration
from snapd.errors import CsnapError
from snapd.helper.server import Server
from snapd.helper.service import Service

PR_SET_PDEATHSIG = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="csnap-helper", description="The privileged helper of one volume.")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--parent", type=int, default=0, metavar="PID")
    arguments = parser.parse_args()
    if arguments.parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != arguments.parent:  # it died before
            return 1
    try:
        config = configuration.load(configuration.find(arguments.config))
        server = Server(config.export.helper, Service(config))
    except (CsnapError, OSError) as error:
        print(f"csnap-helper: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: server.stop())
    if not arguments.parent:  # a daemon's child has that one's NOTIFY_SOCKET, and is not who is meant
        _ready()
    server.run()
    return 0


def _ready() -> None:
    """Tell systemd, if it has started this process, that the socket listens."""
    with contextlib.suppress(ImportError, OSError):
        from systemd.daemon import notify

        notify("READY=1")


if __name__ == "__main__":
    sys.exit(main())
