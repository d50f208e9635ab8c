"""``csnap attach`` and ``csnap detach``: the origin as a block device of this host."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from snapd import config as configuration
from snapd.errors import ConfigError, Refused
from snapd.units import format_size

if TYPE_CHECKING:  # what the commands need is imported when they run
    from snapd.attach.device import Device
    from snapd.config import Config


def _load(arguments: argparse.Namespace) -> Config:
    config = configuration.load(configuration.find(arguments.config))
    if not config.attach.device:
        raise ConfigError(f"{config.path}: [attach] device: missing: where the origin shall appear, like /dev/nbd0")
    return config


def add_attach(command: argparse.ArgumentParser) -> None:
    command.add_argument("--status", action="store_true", help="only show whether it is attached, and who uses it")


def add_detach(command: argparse.ArgumentParser) -> None:
    command.add_argument("--force", action="store_true", help="also if it is in use: its users get I/O errors")


def attach(arguments: argparse.Namespace) -> int:
    """Stay until told to stop, then detach; a device that is in use stays attached, and the exit code is 1."""
    from snapd.attach.attach import Attachment
    from snapd.attach.control import Control
    from snapd.attach.detach import detach as run_detach
    from snapd.attach.device import Device
    from snapd.attach.sole import claim
    from snapd.attach.waiting import Reload, Stop, Waiter
    from snapd.daemon.log import open_log
    from snapd.daemon.notify import find_notify
    from snapd.worker.process import protect

    config = _load(arguments)
    device = Device(config.attach.index)
    if arguments.status:
        return _status(arguments, config, device)
    if arguments.json:
        raise Refused("--json goes with --status")
    with Waiter() as waiter:
        log = open_log(config.node.name, config.volume.name)
        tell = find_notify() or (lambda text: True)
        for warning in protect():
            log(4, "warning", {"text": warning})
        control = Control()
        deaths = control.subscribe()
        try:
            attachment = Attachment(config, control, deaths, device, waiter.wait, log, tell)
            attachment.check_owner()
            claim(device.index, device.path)
            try:
                attachment.run()
            except Reload:
                log(5, "reloading", {"device": device.path})
                waiter.hold()
                _again(arguments.config)
        except Stop:
            tell("STOPPING=1")
            if run_detach(config, control, device, waiter.wait):
                log(5, "detached", {"device": device.path, "by": "a planned stop"})
        finally:
            deaths.close()
            control.close()
    return 0


def _again(config: str) -> NoReturn:
    """Become the program as it is installed now. The script's name is a path through the link to the version in use."""
    script = [sys.argv[0]] if sys.argv[0].endswith("/csnap") else [sys.executable, "-m", "snapd.cli"]
    os.execv(script[0], [*script, "attach", config])


def detach(arguments: argparse.Namespace) -> int:
    from snapd.attach.control import Control
    from snapd.attach.detach import detach as run_detach
    from snapd.attach.device import Device
    from snapd.attach.waiting import Reload, Stop, Waiter

    config = _load(arguments)
    device = Device(config.attach.index)
    control = Control()
    try:
        with Waiter() as waiter:
            done = run_detach(config, control, device, waiter.wait, force=arguments.force)
    except (Stop, Reload):
        raise KeyboardInterrupt from None
    finally:
        control.close()
    print(f"{device.path}: {'detached' if done else 'not attached'}")
    return 0


def _status(arguments: argparse.Namespace, config: Config, device: Device) -> int:
    from snapd.attach.attach import backend_of

    found = device.backend
    attached = found == backend_of(config)
    users = device.users() if attached else []
    value = {
        "device": device.path,
        "attached": attached,
        "backend": found,
        "size": device.size if attached else 0,
        "read_only": attached and device.read_only,
        "requests_under_way": device.inflight if attached else 0,
        "users": users,
    }
    if arguments.json:
        print(json.dumps(value))
    elif attached:
        used = ", ".join(users) or "not mounted, and no other device's part"
        print(f"{device.path}: attached, {format_size(device.size)}, {device.inflight} requests under way; {used}")
    elif found is None:
        print(f"{device.path}: not attached")
    else:
        print(f"{device.path}: attached to something else: {found!r}")
    return 0
