"""Two hosts for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts.testbed import Testbed, testbed


@pytest.fixture(scope="package")
def bed() -> Iterator[Testbed]:
    with testbed(2) as bed:
        yield bed
