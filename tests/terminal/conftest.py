"""Two hosts that serve, with a snapshot and clients that write on both: for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemons import Hosts
from tests.support.traffic import Writer

BLOCKS = 2048


@pytest.fixture(scope="package")
def busy() -> Iterator[Hosts]:
    with Hosts(2) as cluster:
        cluster.start()
        cluster[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cluster.cow("c1"))
        writers = [Writer(daemon, "origin", number, 0, BLOCKS) for number, daemon in enumerate(cluster)]
        for writer in writers:
            writer.start()
        yield cluster
        for writer in writers:
            writer.stop()
