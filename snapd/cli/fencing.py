"""``csnap fence test`` and ``csnap fence confirm``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from snapd import config as configuration
from snapd.cli import text
from snapd.cli.client import ask
from snapd.config import Config
from snapd.errors import CsnapError, NoDaemon, Refused
from snapd.printable import printable_value

AGENT_OFF = 2
"""What the family's agents exit with when asked for the status of a host that is off."""

BROKEN_PROMISE = """\
{node} was not fenced. By confirming you say that it writes nothing any more: switched off, or cut from the disks.
If it is not, it can wake in the middle of a write and overwrite what other hosts have written since: in the origin,
and in chunks and metadata of every snapshot. No error would be seen, and nothing could put it right."""


def confirm(arguments: argparse.Namespace) -> int:
    config = configuration.load(configuration.find(arguments.config))
    node = arguments.member
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise Refused(f"fence confirm {node}: asks a person, or wants --yes")
        print(BROKEN_PROMISE.format(node=node))
        if input("Type the member's name to confirm: ").strip() != node:
            raise Refused(f"fence confirm {node}: not confirmed, nothing was changed")
    ask(config.export.admin, {"command": "fence-confirm", "node": node})
    if arguments.json:
        print(json.dumps({"member": node}))
    else:
        print(f"{node}: taken to be fenced; its locks are being released")
    return 0


def test(arguments: argparse.Namespace) -> int:
    """Exit code 0: everything that was tried works; 1: something does not."""
    config = configuration.load(configuration.find(arguments.config))
    method = config.fencing.method
    if method == "scsi-pr":
        rows = _reservations(config)
    elif method == "watchdog":
        rows = [_watchdog(config)]
    elif method == "agent":
        rows = _agent(config)
    else:
        rows = [_row("", "fence", False, "unsafe fences nobody: nothing to test")]
    good = all(row["ok"] is not False for row in rows)
    if arguments.json:
        print(json.dumps({"method": method, "works": good, "steps": rows}))
    else:
        print(text.fence_steps(method, printable_value(rows)))
    return 0 if good else 1


def _row(target: str, step: str, ok: bool | None, note: str = "") -> dict[str, Any]:
    return {"target": target, "step": step, "ok": ok, "note": note}


class _Helper:
    """The helper that runs, or else its work done here, by root."""

    def __init__(self, config: Config) -> None:
        from snapd.helper.client import Helper

        self._client = Helper(config.export.helper)
        self._service: Any = None
        try:
            self._client.ask("ping")
        except NoDaemon:
            if os.geteuid():
                raise Refused(f"fence test: no helper answers on {config.export.helper}: run it as root") from None
            from snapd.helper.service import Service

            self._service = Service(config)

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        if self._service is None:
            return self._client.ask(verb, **fields)
        answer: dict[str, Any] = self._service.handle({"verb": verb, **fields})
        return answer


def _reservations(config: Config) -> list[dict[str, Any]]:
    """Each device of the volume: the origin, and the COW devices that the running daemon or etcd knows."""
    helper = _Helper(config)
    try:
        fencing = ask(config.export.admin, {"command": "fencing"})
        key, keys, devices = fencing["key"], fencing["keys"], fencing["devices"]
    except NoDaemon:
        key = ""
        try:
            keys, devices = _registry(config)
        except CsnapError as error:
            keys, devices = {"": ""}, []
            print(f"csnap: warning: COW devices are not tested: {error}", file=sys.stderr)
    why = _why_not_reserve(keys)
    rows = []
    for device in [config.volume.origin, *devices]:
        try:
            steps = helper.ask("try", device=device, key=key, no_reserve=why)["steps"]
            rows += [_row(device, step["step"], step["ok"], step["note"]) for step in steps]
        except CsnapError as error:
            rows.append(_row(device, "open", False, str(error)))
    return rows


def _why_not_reserve(keys: dict[str, str]) -> str:
    """A reservation keeps everyone out who has not registered: empty if all have."""
    from snapd.lockspace.fencing.keys import is_reservation_key

    strangers = sorted(node for node, key in keys.items() if not is_reservation_key(key))
    if strangers == [""]:
        return "etcd does not say who is running: a member without a key would be kept from writing"
    return f"{', '.join(strangers)} runs without a key and would be kept from writing" if strangers else ""


def _registry(config: Config) -> tuple[dict[str, str], list[str]]:
    """What etcd has: each member's fence key, and the COW devices of live snapshots. Raises LockspaceError."""
    from snapd.lockspace.etcd import Tls
    from snapd.lockspace.etcd_sync import EtcdSync
    from snapd.lockspace.keys import Keys
    from snapd.lockspace.records import MemberRecord, SnapshotRecord

    lockspace, keys = config.lockspace, Keys(config.volume.cluster_uuid)
    tls = Tls(lockspace.ca, lockspace.cert, lockspace.key) if lockspace.ca or lockspace.cert else None
    with EtcdSync(lockspace.endpoints, tls) as etcd:
        members = [MemberRecord.from_bytes(kv.key, kv.value) for kv in etcd.read_prefix(keys.prefix + "m/")]
        snapshots = [SnapshotRecord.from_bytes(kv.key, kv.value) for kv in etcd.read_prefix(keys.prefix + "s/")]
    live = [record.path for record in snapshots if record.state not in ("creating", "invalid")]
    return {record.node: record.fence_key for record in members}, live


def _watchdog(config: Config) -> dict[str, Any]:
    device = config.fencing.device
    try:
        found = _Helper(config).ask("look")
    except CsnapError as error:
        return _row(device, "open", False, str(error))
    note = f"{found['identity']}, {found['timeout']} s"
    if found["nowayout"]:
        note += "; nowayout: stopping csnap resets this host, unless it is started again in time"
    return _row(device, "open", True, note)


def _agent(config: Config) -> list[dict[str, Any]]:
    """Each configured host's status: the agent reaches it and may ask. Nothing is switched."""
    from snapd.lockspace.fencing.agent import AgentFailed, AgentSettings, run_agent

    fencing = config.fencing
    rows = []
    note = "" if fencing.hosts else "no [fencing.hosts]: tried with this host"
    for node in fencing.hosts or {config.node.name: {}}:
        for action, good in (("status", (0, AGENT_OFF)), ("monitor", (0,))):
            options = {**fencing.options, **fencing.hosts.get(node, {}), "action": action}
            try:
                run_agent(AgentSettings(fencing.agent, fencing.timeout, options, {}), node)
                row = _row(node, action, True, note)
            except AgentFailed as error:
                row = _row(node, action, error.code in good, "it is off" if error.code in good else str(error))
            if row["ok"]:
                break
        rows.append(row)
    return rows
