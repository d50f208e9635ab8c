"""One booted host for all tests of this directory: an etcd, two volumes' disks as loop devices, csnap installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from demo.host import CONFIG, Volume
from snapd.units import MIB
from tests.support.disks import attached
from tests.support.etcd_server import EtcdServer
from tests.systemd.booted import Host, booted

DISKS = ("origin", "cow", "origin2")
CSNAP = "/opt/csnap/current/bin/csnap"
Configure = Callable[..., str]


@pytest.fixture(scope="package")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="package")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The steps of docs/install.md, but for the packages."""
    directory = tmp_path_factory.mktemp("disks")
    with ExitStack() as stack:
        binds = {}
        for name in DISKS:
            backing = directory / name
            with open(backing, "wb") as file:
                file.truncate(16 * MIB)
            binds[stack.enter_context(attached(str(backing)))] = f"/dev/csnap-{name}"
        for device in binds:
            status = Path(device).stat()
            stack.callback(Path(device).chmod, status.st_mode & 0o777)
            stack.callback(_give, device, status.st_uid, status.st_gid)
        host = stack.enter_context(booted(binds))
        host.walk("units")
        for inside in binds.values():  # what the udev rule does on a real host
            host.run("chgrp", "csnap", inside)
            host.run("chmod", "0660", inside)
        yield host


def _give(path: str, user: int, group: int) -> None:
    os.chown(path, user, group)


@pytest.fixture
def configure(host: Host, etcd: EtcdServer) -> Iterator[Configure]:
    """Return a function that writes /etc/csnap/<name>.toml, its drop-ins and returns the unit; stopped afterwards."""
    units = []

    def configured(
        name: str, *, origin: str = "origin", url: str = "", dropin: str = "", edit: Callable[[str], str] = str
    ) -> str:
        unit = f"csnapd@{name}.service"
        volume = Volume(name, str(uuid4()), Path(f"/dev/csnap-{origin}"), url or etcd.url, lease_ttl=10)
        text = CONFIG.format(volume=volume, name="host-a", directory=f"/run/csnap/{name}", port=0)
        host.write(f"/etc/csnap/{name}.toml", edit(text))
        host.run("chown", "root:csnap", f"/etc/csnap/{name}.toml")
        host.write(f"/etc/systemd/system/{unit}.d/test.conf", f"[Service]\nDeviceAllow=block-loop rw\n{dropin}")
        host.run("systemctl", "daemon-reload")
        units.append((unit, f"csnap-helper@{name}.service"))
        return unit

    yield configured
    for unit, helper in units:
        print(host.journal(unit))
        host.run("systemctl", "stop", unit, helper, check=False)
        host.run("systemctl", "reset-failed", check=False)
