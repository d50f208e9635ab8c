"""Everything about one volume, and about the host. Nothing is changed; safe while csnap runs, useful while it does not.

A check that cannot be made is "not checked" with the reason, and costs no other check: a doctor has to work where
nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from snapd.config import Config
from snapd.doctor import (
    daemon,
    daemon_facts,
    device_facts,
    devices,
    etcd,
    etcd_facts,
    host,
    host_facts,
    unit,
    unit_facts,
)
from snapd.doctor.finding import Finding, Subject
from snapd.lockspace.keys import Keys
from snapd.lockspace.records import FormatRecord, SnapshotRecord
from snapd.printable import one_line

Progress = Callable[[str], None]
T = TypeVar("T")


def examine(config: Config, ask: daemon_facts.Ask, progress: Progress = lambda text: None) -> list[Finding]:
    """All findings about one volume. ``ask``: see daemon_facts."""
    findings: list[Finding] = []
    record: FormatRecord | None = None
    snapshots: tuple[SnapshotRecord, ...] = ()

    progress("asking the daemon")
    with_daemon = _try(findings, Subject(daemon.AREA), "answers", lambda: daemon_facts.gather(config, ask))
    if with_daemon is not None:
        _try(findings, Subject(daemon.AREA), "status", lambda: findings.extend(daemon.judge(with_daemon)))

    progress("asking etcd")
    key = Keys(config.volume.cluster_uuid).format
    cluster = _try(findings, Subject(etcd.AREA), "endpoint", lambda: etcd_facts.gather(config.lockspace, key))
    if cluster is not None:
        findings += etcd.judge(cluster)
    for file in etcd_facts.files(config.lockspace):
        findings += etcd.judge_file(file)
    found = _try(findings, Subject(etcd.AREA), "record", lambda: daemon_facts.record(config))
    if found is not None:
        record, snapshots = found
        findings.append(_same(config, record))

    progress("looking at the devices")
    _try(findings, Subject(devices.AREA), "open", lambda: findings.extend(_devices(config, record, snapshots)))
    live = [snapshot for snapshot in snapshots if snapshot.state in daemon_facts.READ_LIVE]
    for snapshot in live:
        progress(f"checking {snapshot.path}")
        size = record.origin_size if record is not None else None
        findings.append(daemon.checked(daemon_facts.check(snapshot.name, snapshot.path, size)))

    progress("looking at fencing and units")
    findings += _fencing(config, ask)
    findings += _units(config)
    return findings


def examine_host(configs: Sequence[Config]) -> list[Finding]:
    """What is one for all volumes: limits are those of the first daemon that runs."""
    paths = [path for config in configs for path in _paths(config)]
    pids = (host_facts.daemon_pid(config.export.admin) for config in configs)
    findings: list[Finding] = []
    daemon_pid = next((pid for pid in pids if pid), 0)
    facts = _try(findings, Subject(host.AREA), "host", lambda: host_facts.gather(paths, daemon_pid))
    return findings + (list(host.judge(facts)) if facts is not None else [])


def _paths(config: Config) -> Iterator[str]:
    yield config.volume.origin
    if config.attach.device:
        yield config.attach.device


def _devices(config: Config, record: FormatRecord | None, snapshots: Iterable[SnapshotRecord]) -> Iterator[Finding]:
    chunk = config.volume.chunk_size
    size = record.origin_size if record is not None else None
    identity = record.origin_identity if record is not None else None
    origin = device_facts.gather(config.volume.origin, devices.ORIGIN)
    yield from devices.judge(origin, devices.Expected(size, identity, chunk))
    expected = devices.Expected(None, None, chunk, origin.logical_block)
    for snapshot in snapshots:
        if snapshot.state in daemon_facts.READ_LIVE:
            yield from devices.judge(device_facts.gather(snapshot.path, f"COW of {snapshot.name}"), expected)


def _same(config: Config, record: FormatRecord) -> Finding:
    """Whether this host's configuration agrees with what was fixed for the volume."""
    about = Subject(daemon.AREA)
    volume = config.volume
    wrong = [
        f"{name} {ours}, {theirs} on record"
        for name, ours, theirs in (
            ("chunk_size", volume.chunk_size, record.chunk_size),
            ("region_size", volume.region_size or record.region_size, record.region_size),
        )
        if ours != theirs
    ]
    if wrong:
        return about.failed("record", "; ".join(wrong), "put the configuration right: sizes are fixed by volume init")
    return about.ok("record", "the configuration agrees with what was fixed for the volume")


def _fencing(config: Config, ask: daemon_facts.Ask) -> list[Finding]:
    findings: list[Finding] = []
    if config.fencing.method == "scsi-pr":
        found = _try(findings, Subject(daemon.FENCING), "reservation", lambda: daemon_facts.registrations(config, ask))
        findings += [daemon.registration(row) for row in found or ()]
    elif config.fencing.method == "watchdog":
        facts = host_facts.watchdog(config.fencing.device)
        findings += host.watchdog(facts, config.fencing.watchdog_timeout, daemon_facts.helper_pets(config))
    return findings


def _units(config: Config) -> list[Finding]:
    name, ttl = config.volume.name, config.lockspace.lease_ttl
    findings = list(unit.judge(unit_facts.gather(f"csnapd@{name}.service", ttl)))
    if config.fencing.privileged:
        findings += unit.judge_helper(unit_facts.gather(f"csnap-helper@{name}.service", ttl))
    return findings


def _try(findings: list[Finding], about: Subject, check: str, look: Callable[[], T]) -> T | None:
    """None: it could not be looked at, and a finding says so."""
    try:
        return look()
    except Exception as error:  # also a fault of ours: the other checks are needed all the more
        text = one_line(error)
        known = error.__class__.__module__ == "snapd.errors" or isinstance(error, OSError)
        findings.append(about.unchecked(check, text if known else f"{type(error).__name__}: {text}"))
        return None
