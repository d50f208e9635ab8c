"""Clusters of two and three real hosts, each for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemons import Hosts


@pytest.fixture
def two() -> Iterator[Hosts]:
    """Two hosts that serve."""
    with Hosts(2) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def three() -> Iterator[Hosts]:
    """Three hosts that serve."""
    with Hosts(3) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def patient() -> Iterator[Hosts]:
    """Two hosts whose leases live so long that nothing in the test can be due to their end."""
    with Hosts(2, lease_ttl=20) as cluster:
        cluster.start()
        yield cluster
