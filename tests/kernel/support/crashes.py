"""In the guest: the kernel's client under four writers, while daemon, worker and the attach program are killed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tests.kernel.support.guest_host import (
    OTHER_UUID,
    RESTART,
    Unit,
    Writers,
    complaints,
    configure,
    csnap,
    fact,
    signal,
    wait_for,
)

DEVICE = "/dev/nbd0"


def outage(writers: Writers, name: str, kill: object) -> None:
    """One crash: until all write again."""
    writers.mark()
    assert callable(kill)
    kill()
    writers.go_on()
    fact(f"{name}-stall", f"{writers.stall:.2f}")


def main() -> None:
    config = configure()
    made = csnap("volume", "init", config)
    fact("init", f"{made.returncode} {made.stderr.strip()}")
    attach = Unit("attach", "attach", config, restart=1.0)
    wait_for(lambda: attach.said("attach_waiting") > 0, "the attach program waits for the daemon")
    daemon = Unit("daemon", "serve", config, restart=RESTART)
    wait_for(lambda: attach.said(" attached ") == 1, "attached")
    fact("backend", Path("/sys/block/nbd0/backend").read_text().strip())
    fact("queue", " ".join(Path(f"/sys/block/nbd0/queue/{name}").read_text().strip() for name in
                           ("logical_block_size", "io_timeout", "max_sectors_kb")))  # fmt: skip
    taken = csnap("snapshot", "create", config, "s1", "--cow", "/dev/vdb")
    fact("snapshot", taken.stdout.strip() or taken.stderr.strip())
    status = json.loads(csnap("attach", config, "--status", "--json").stdout)
    fact("status", f"{status['attached']} {status['size']} {status['read_only']}")

    writers = Writers(DEVICE)
    writers.go_on()
    began = time.monotonic()
    attach.kill()  # the device stays; who comes next adopts it
    writers.go_on()
    wait_for(lambda: attach.said("adopted=True") == 1, "adopted")
    attach.signal(signal.SIGHUP)
    wait_for(lambda: attach.said("adopted=True") == 2, "adopted by itself")
    outage(writers, "control", daemon.kill)
    outage(writers, "worker", lambda: os.kill(daemon.children()[0], signal.SIGKILL))
    fact("reconnected", attach.said("taken=True"))

    other = configure("other", OTHER_UUID)
    foreign = csnap("attach", other)
    fact("foreign", f"{foreign.returncode} {foreign.stderr.strip()}")
    refused = csnap("detach", config)
    fact("in-use", f"{refused.returncode} {refused.stderr.strip()}")
    writers.go_on()
    fact("seconds", f"{time.monotonic() - began:.0f}")
    writers.stop()
    fact("errors", writers.errors or 0)
    fact("written", min(writer.count for writer in writers.all))
    fact("wrong", writers.wrong(DEVICE))
    fact("detached", f"{attach.stop()} {Path('/sys/block/nbd0/backend').exists()}")
    fact("stopped", daemon.stop())
    fact("wrong-on-the-origin", writers.wrong("/dev/vda"))
    attach.show()
    complaints()


if __name__ == "__main__":
    main()
