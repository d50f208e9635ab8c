"""Asks the daemon on this host, and etcd where the daemon cannot be asked."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from snapd import __version__
from snapd.blockdev.device import open_device
from snapd.blockdev.sync import pread
from snapd.config import Config
from snapd.doctor.daemon import CheckFacts, DaemonFacts, Registration
from snapd.errors import CsnapError, NoDaemon
from snapd.exstore import check as checks
from snapd.helper.client import Helper
from snapd.lockspace.keys import Keys
from snapd.lockspace.records import FormatRecord, SnapshotRecord

Ask = Callable[[str], Any]
"""Asks the local daemon for a command's result. Raises NoDaemon, CsnapError."""

READ_LIVE = ("active", "overflow", "deleting")
AGAIN = 1.0
"""Seconds: entries behind a gap, seen while a daemon appends, are gone by then."""

ETCD_PATIENCE = 3_000_000_000
PROBLEMS_MOST = 20


def gather(config: Config, ask: Ask) -> DaemonFacts:
    answer: Any = None
    error = ""
    try:
        answer = ask("observe")
    except CsnapError as failure:
        error = str(failure)
    return DaemonFacts(answer, error, __version__, shared_hash(config))


def shared_hash(config: Config) -> str:
    """Short, of what every host of the volume must have alike."""
    volume, lockspace, fencing = config.volume, config.lockspace, config.fencing
    shared = {
        "cluster_uuid": volume.cluster_uuid,
        "chunk_size": volume.chunk_size,
        "region_size": volume.region_size,
        "type": volume.type,
        "lease_ttl": lockspace.lease_ttl,
        "freeze_limit": lockspace.freeze_limit,
        "endpoints": sorted(lockspace.endpoints),
        "fencing": fencing.method,
        "watchdog_timeout": fencing.watchdog_timeout,
    }
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:12]


def record(config: Config) -> tuple[FormatRecord, tuple[SnapshotRecord, ...]]:
    """The volume as etcd has it. Raises CsnapError."""
    from snapd.lockspace.etcd import Tls
    from snapd.lockspace.etcd_sync import EtcdSync
    from snapd.lockspace.kv import Range

    lockspace, keys = config.lockspace, Keys(config.volume.cluster_uuid)
    tls = Tls(lockspace.ca, lockspace.cert, lockspace.key) if lockspace.ca or lockspace.cert else None
    with EtcdSync(lockspace.endpoints, tls, ETCD_PATIENCE) as etcd:
        found = etcd.range(Range(keys.format)).kvs
        snapshots = tuple(SnapshotRecord.from_bytes(kv.key, kv.value) for kv in etcd.read_prefix(keys.snapshots))
    if not found:
        raise CsnapError("the volume is not registered: csnap volume init")
    return FormatRecord.from_bytes(found[0].key, found[0].value), snapshots


def check(name: str, path: str, origin_size: int | None) -> CheckFacts:
    """``csnap check`` of a device that may be in use: what is still there a second later is a problem."""
    try:
        problems = _problems(path, origin_size)
        if problems:
            time.sleep(AGAIN)
            problems = _problems(path, origin_size)
    except CsnapError as error:
        return CheckFacts(name, path, str(error).removeprefix(f"{path}: "))
    return CheckFacts(name, path, "", problems)


def _problems(path: str, origin_size: int | None) -> tuple[str, ...]:
    device = open_device(path, exclusive=False, read_only=True)
    try:
        report = checks.check(lambda offset, length: pread(device, offset, length), device.size, origin_size)
    finally:
        device.close()
    return tuple(str(problem) for problem in report.problems[:PROBLEMS_MOST])


def registrations(config: Config, ask: Ask) -> tuple[Registration, ...]:
    """Of the daemon's key on this host's paths, verified by the helper; nothing changes on the devices."""
    origin = config.volume.origin
    try:
        told = ask("fencing")
    except NoDaemon:
        return (Registration(origin, None, "no daemon runs, so there should be no key"),)
    if not told["key"]:
        return (Registration(origin, None, "the daemon has registered none yet"),)
    helper = Helper(config.export.helper, limit=30.0)
    found = []
    for device in [origin, *told["devices"]]:
        try:
            found.append(Registration(device, helper.ask("verify", device=device, key=told["key"])["registered"]))
        except CsnapError as error:
            found.append(Registration(device, None, str(error)))
    return tuple(found)


def helper_pets(config: Config) -> bool | None:
    """Whether the helper holds the watchdog; None: it does not answer."""
    try:
        return bool(Helper(config.export.helper, limit=5.0).ask("ping")["armed"])
    except CsnapError:
        return None
