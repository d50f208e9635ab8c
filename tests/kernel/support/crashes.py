"""In the guest: the kernel's client under four writers; the daemon is restarted, then it and the rest are killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

from tests.kernel.support.guest_host import OTHER_UUID, Unit, Writers, configure, csnap, fact, wait_for


def outage(writers: Writers, name: str, happens: Callable[[], None]) -> None:
    """Until all write again; the longest that one of them waited."""
    writers.mark()
    happens()
    writers.go_on()
    fact(f"{name}-stall", f"{writers.stall:.2f}")


def run(config: str, device: str, daemon: Unit, attach: Unit) -> None:
    status = json.loads(csnap("attach", config, "--status", "--json").stdout)
    fact("status", f"{status['attached']} {status['size']} {status['read_only']}")
    foreign = csnap("attach", configure("other", OTHER_UUID))
    fact("foreign", f"{foreign.returncode} {foreign.stderr.strip()}")
    descriptor = os.open(device, os.O_RDONLY)  # as a virtual machine does, which no list of mounts shows
    refused = csnap("detach", config)
    os.close(descriptor)
    fact("in-use", f"{refused.returncode} {refused.stderr.strip()}")
    writers = Writers(device)
    writers.go_on()
    began = time.monotonic()

    outage(writers, "restart", daemon.restart)
    fact("lost-by-restart", attach.said("connection_lost"))

    attach.kill()  # the device stays; who comes next adopts it
    writers.go_on()
    wait_for(lambda: attach.said("adopted=True") == 1, "adopted")
    attach.signal(signal.SIGHUP)
    wait_for(lambda: attach.said("adopted=True") == 2, "adopted by itself")
    second = csnap("attach", config)
    fact("second", f"{second.returncode} {second.stderr.strip()}")
    outage(writers, "control", daemon.kill)
    outage(writers, "worker", lambda: os.kill(daemon.children()[0], signal.SIGKILL))
    fact("reconnected", attach.said("taken=True"))

    writers.go_on()
    fact("seconds", f"{time.monotonic() - began:.0f}")
    writers.stop()
    fact("errors", writers.errors or 0)
    fact("written", min(writer.count for writer in writers.all))
    fact("wrong", writers.wrong(device))
    fact("wrong-on-the-origin", writers.wrong("/dev/vda"))
