"""In the guest: the kernel's software watchdog in the helper's hands, until the host resets."""

from __future__ import annotations

import time
from pathlib import Path

from snapd import config as configuration
from snapd.clock import boottime
from snapd.helper.service import Service
from snapd.units import SECOND
from tests.kernel.support.reservations import CLUSTER, CONFIG, fact

TIMEOUT, LEASE = 2, 6
"""Seconds; the lease is renewed no more after LEASE."""


def main() -> None:
    path = Path("/run/vol.toml")
    text = CONFIG.format(cluster=CLUSTER, origin="/dev/vda", name="host-a", directory="/run")
    path.write_text(text.replace('"scsi-pr"', f'"watchdog"\nwatchdog_timeout = {TIMEOUT}'))
    service = Service(configuration.load(path))
    fact("look", service.handle({"verb": "look"}))
    service.handle({"verb": "pet", "deadline": boottime() + SECOND})
    fact("disarmed", service.handle({"verb": "disarm"})["disarmed"])
    time.sleep(TIMEOUT + 2)  # longer than it would have lived
    fact("lives", "on")
    begun = boottime()
    service.handle({"verb": "pet", "deadline": begun + LEASE * SECOND})
    while True:
        fact("alive", f"{(boottime() - begun) / SECOND:.1f}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
