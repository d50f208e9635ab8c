"""Two hosts that serve, with a snapshot and clients that write on both: for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from snapd.units import MIB
from tests.support.daemons import Hosts
from tests.support.traffic import BLOCK, Writer

ORIGIN = 256 * MIB
"""So large that writes meet chunks without a copy, and so each other's locks, until the last test."""


@pytest.fixture(scope="package")
def busy() -> Iterator[Hosts]:
    with Hosts(2, origin_size=ORIGIN, lease_ttl=20) as cluster:
        cluster.start()
        cluster[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cluster.cow("c1", 2 * ORIGIN))
        writers = [Writer(daemon, "origin", number, 0, ORIGIN // BLOCK) for number, daemon in enumerate(cluster)]
        for writer in writers:
            writer.start()
        yield cluster
        for writer in writers:
            writer.stop()
