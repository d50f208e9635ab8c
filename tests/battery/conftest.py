"""Three hosts under load, for one test: over three members of etcd, or in network namespaces as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from snapd.units import MIB
from tests.battery.far import Far, can_isolate, far_hosts
from tests.battery.observer import Observer
from tests.battery.scene import Scene, fence_by_killing
from tests.support.daemons import Hosts
from tests.support.etcd_server import etcd_cluster
from tests.support.traffic import Traffic

ORIGIN = 8 * MIB


@contextmanager
def under_load(cluster: Hosts, cow: tuple[Path, Path] | None = None) -> Iterator[Scene]:
    """Start the hosts, the witness and all clients."""
    cluster.start()
    urls = [etcd.url for etcd in cluster.etcds]
    with Observer(urls, cluster.volume.uuid) as observer, Traffic(cluster) as traffic:
        scene = Scene(cluster, traffic, observer, cow or (cluster.cow("cow"), cluster.cow("cow")))
        scene.begin()
        yield scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Three hosts and three members of etcd; fencing kills."""
    with ExitStack() as stack:
        etcds = stack.enter_context(etcd_cluster())
        cluster = stack.enter_context(Hosts(3, etcds=etcds, origin_size=ORIGIN, chunk_size="4KiB"))
        fence_by_killing(cluster)
        yield stack.enter_context(under_load(cluster))


@pytest.fixture
def slowly_fenced() -> Iterator[Scene]:
    """Three hosts and one etcd; fencing kills, and takes its time."""
    with Hosts(3, origin_size=ORIGIN, chunk_size="4KiB") as cluster:
        fence_by_killing(cluster, delay=2)
        with under_load(cluster) as scene:
            yield scene


@pytest.fixture
def patient() -> Iterator[Scene]:
    """Three hosts and one etcd; leases that outlive a restart on a busy machine."""
    with Hosts(3, origin_size=ORIGIN, chunk_size="4KiB", lease_ttl=20) as cluster:
        fence_by_killing(cluster)
        with under_load(cluster) as scene:
            yield scene


@pytest.fixture
def far() -> Iterator[Far]:
    """Three hosts in namespaces, not started yet; fencing makes a host's devices read-only."""
    if not can_isolate():
        pytest.skip("no network namespaces, packet filters or loop devices here: needs root")
    with far_hosts() as far:
        yield far


@pytest.fixture
def far_scene(far: Far) -> Iterator[Scene]:
    """The same hosts, under load."""
    with under_load(far.cluster, (far.cow, far.cow_file)) as scene:
        yield scene
