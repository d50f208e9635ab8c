"""The commands that take a CONFIG. Each returns an exit code, or raises a CsnapError."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from snapd import __version__
from snapd import config as configuration
from snapd.cli import text
from snapd.cli.client import ask
from snapd.config import Config
from snapd.errors import CsnapError
from snapd.printable import printable_value
from snapd.units import format_size


def _load(arguments: argparse.Namespace) -> Config:
    return configuration.load(configuration.find(arguments.config))


def _ask(arguments: argparse.Namespace, command: str, **fields: Any) -> Any:
    """Ask the local daemon; what it is doing is shown to a person who waits."""
    path = _load(arguments).export.admin
    if not sys.stderr.isatty():
        return ask(path, {"command": command, **fields})
    shown = ""

    def progress(line: str) -> None:
        nonlocal shown
        if line != shown:
            print(f"csnap: {line}", file=sys.stderr)
        shown = line

    return ask(path, {"command": command, **fields}, progress)


def _show(arguments: argparse.Namespace, value: Any, shown: str) -> int:
    print(json.dumps(value) if arguments.json else shown)
    return 0


def serve(arguments: argparse.Namespace) -> int:
    from snapd.daemon.log import open_log
    from snapd.daemon.serve import serve as run
    from snapd.worker.process import protect

    config = _load(arguments)
    # Write-back on this host may need the lease that this process renews. The worker says the same for itself, and logs
    # what was refused. Before gRPC has threads: the flag is each thread's, inherited.
    protect()
    run(config, open_log(config.node.name, config.volume.name))
    return 0


def volume_init(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    from snapd.blockdev.device import open_device
    from snapd.cluster.volume import check_type, init_volume, new_format

    check_type(config.volume.type)
    device = open_device(config.volume.origin, exclusive=False, read_only=True)
    size, identity = device.size, device.identity
    device.close()
    record = new_format(config.volume, size, identity)
    new, warnings = init_volume(config, record)
    for warning in warnings:
        print(f"csnap: warning: {warning}", file=sys.stderr)
    value = {
        "volume": config.volume.name,
        "new": new,
        "origin_size": size,
        "chunk_size": record.chunk_size,
        "region_size": record.region_size,
    }
    return _show(
        arguments,
        value,
        f"{config.volume.name}: {'' if new else 'already '}initialized: origin of {format_size(size)},"
        f" chunks of {format_size(record.chunk_size)}, regions of {format_size(record.region_size)}",
    )


def volume_upgrade(arguments: argparse.Namespace) -> int:
    value = _ask(arguments, "volume-upgrade")
    raised = value["protocol"] != value["was"]
    shown = f"protocol {value['protocol']} is in force" + (f", it was {value['was']}" if raised else " already")
    return _show(arguments, value, shown)


def snapshot_create(arguments: argparse.Namespace) -> int:
    cow = os.path.abspath(arguments.cow)  # noqa: PTH100  symbolic links stay: /dev/disk/by-id is what hosts share
    value = _ask(
        arguments,
        "snapshot-create",
        name=arguments.name,
        cow=cow,
        writable=arguments.writable,
        force=arguments.force,
    )
    return _show(arguments, value, f"{value['name']}: taken")


def snapshot_delete(arguments: argparse.Namespace) -> int:
    value = _ask(arguments, "snapshot-delete", name=arguments.name)
    return _show(arguments, value, f"{value['name']}: deleted")


def snapshot_list(arguments: argparse.Namespace) -> int:
    rows = _ask(arguments, "status")["snapshots"]
    return _show(arguments, rows, text.snapshots(printable_value(rows)))


NEEDS_RESTART = 5
"""Exit code of ``reload``: everything that can change in a running daemon is in force, and something cannot."""


def reload(arguments: argparse.Namespace) -> int:
    value = _ask(arguments, "reload")
    if arguments.json:
        print(json.dumps(value))
    elif value["applied"] or not value["needs_restart"]:
        print(f"in force: {', '.join(value['applied']) or 'nothing has changed'}")
    if value["needs_restart"]:
        print(f"csnap: needs a restart: {', '.join(value['needs_restart'])}", file=sys.stderr)
    return NEEDS_RESTART if value["needs_restart"] else 0


def status(arguments: argparse.Namespace) -> int:
    value = _ask(arguments, "status")
    return _show(arguments, value, text.status(printable_value(value)))


def _missing(path: str) -> bool:
    try:
        return not Path(path).exists()
    except OSError:  # only root may look there
        return False


def config_check(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    from snapd.exstore.types import store_types

    try:
        store_types().find(config.volume.type)
    except CsnapError as error:
        raise CsnapError(f"{config.path}: [volume] type: {error}") from None
    for key, path in (("ca", config.lockspace.ca), ("cert", config.lockspace.cert), ("key", config.lockspace.key)):
        if path and _missing(path):
            print(f"csnap: warning: {config.path}: [lockspace] {key}: {path}: no such file yet", file=sys.stderr)
    return _show(arguments, {"path": str(config.path), "volume": config.volume.name}, f"{config.path}: good")


def version(arguments: argparse.Namespace) -> int:
    return _show(arguments, {"version": __version__}, f"csnap {__version__}")
