"""``csnap doctor``: reservations and watchdog by way of the helper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapd.doctor.daemon_facts import helper_pets, registrations
from snapd.errors import NoDaemon, Refused
from snapd.helper.service import Service
from snapd.units import SECOND
from tests.unit.test_helper import KEY, OTHER, World
from tests.unit.test_watchdog import FakeSystem


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def daemon(world: World, key: str = KEY) -> Any:
    """Answers as the daemon does, with ``key`` registered on the origin and one COW device."""
    return lambda command: {"key": key, "keys": {}, "devices": [str(world.cow)]}


def test_this_hosts_key_is_verified_on_each_device(world: World) -> None:
    """There; and gone after somebody has preempted it on one of them. Nothing changes by looking."""
    a, b = world.service("host-a"), world.service("host-b")
    for device in (str(world.origin), str(world.cow)):
        a.handle({"verb": "register", "device": device, "key": KEY})
        b.handle({"verb": "register", "device": device, "key": OTHER})
    with world.serving(a):
        assert [row.registered for row in registrations(world.config, daemon(world))] == [True, True]
        b.handle({"verb": "preempt", "device": str(world.cow), "key": OTHER, "victim": KEY})
        for _ in range(2):
            rows = registrations(world.config, daemon(world))
            assert [(row.device, row.registered) for row in rows] == [
                (str(world.origin), True), (str(world.cow), False),
            ]  # fmt: skip
    assert b.handle({"verb": "verify", "device": str(world.cow), "key": OTHER}) == {"registered": True}


def test_what_cannot_be_verified_is_not_known(world: World) -> None:
    """No helper, no daemon, a daemon that has registered nothing yet."""

    def nobody(command: str) -> Any:
        raise NoDaemon("nobody listens")

    for ask in (daemon(world), nobody, daemon(world, "")):
        rows = registrations(world.config, ask)
        assert rows and all(row.registered is None and row.why for row in rows)


def test_a_foreign_device_is_verified_for_nobody(world: World) -> None:
    """As with every verb of the helper."""
    foreign = world.directory / "foreign"
    foreign.write_bytes(bytes(1 << 20))
    with pytest.raises(Refused, match="neither the origin nor a COW device"):
        world.service().handle({"verb": "verify", "device": str(foreign), "key": KEY})


def test_who_pets_the_watchdog(world: World) -> None:
    """The helper, once it was asked to; nobody can say without it."""
    world.config = replace(world.config, fencing=replace(world.config.fencing, method="watchdog"))
    assert helper_pets(world.config) is None
    service = Service(world.config, system=FakeSystem())
    with world.serving(service):
        assert helper_pets(world.config) is False
        service.handle({"verb": "pet", "deadline": service._clock() + 60 * SECOND})
        assert helper_pets(world.config) is True
        service.handle({"verb": "disarm"})
