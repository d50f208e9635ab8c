"""Verdicts on what the daemon says of itself, and of members, snapshots and locks as it knows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snapd.doctor.finding import Finding, Subject

AREA = "daemon"
MEMBERS, SNAPSHOTS, LOCKS, FENCING = "members", "snapshots", "locks", "fencing"

FULL_WARNING, FULL_FAILED = 80.0, 95.0  # percent
WAIT_NOTE = 1.0  # seconds; a wait longer than the lease lives has failed
HEARTBEAT_MOST = 5.0
OLDEST_MOST = 15.0

ADVICE = {
    "memory not locked": "LimitMEMLOCK=infinity, as in the unit that csnap brings",
    "PR_SET_IO_FLUSHER": "AmbientCapabilities=CAP_SYS_RESOURCE, as in the unit that csnap brings",
    "O_DIRECT": "use block devices",
    "page cache": "use block devices",
}
"""What to do about the daemon's own warnings, by a word in them."""


@dataclass(frozen=True, slots=True)
class CheckFacts:
    """``csnap check`` of one COW device. ``error``: it could not be read."""

    name: str
    path: str
    error: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Registration:
    """Whether this host's path has the running daemon's reservation key; None: not known, and why."""

    device: str
    registered: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """``answer`` of the command observe; None: no daemon answers, and why. ``ours``: version of this command.

    ``config_hash``: of what all hosts' configurations must have in common."""

    answer: Mapping[str, Any] | None
    error: str
    ours: str
    config_hash: str


def judge(facts: DaemonFacts) -> Iterator[Finding]:
    about = Subject(AREA)
    yield about.ok("configuration", f"its shared part has the hash {facts.config_hash}: the same on every host?")
    if facts.answer is None:
        yield about.failed("answers", facts.error, "systemctl status and journalctl -u of the unit; csnap serve")
        for area, check in ((MEMBERS, "state"), (SNAPSHOTS, "state"), (LOCKS, "waits"), (FENCING, "method")):
            yield Subject(area).unchecked(check, "no daemon answers on this host")
        return
    status = facts.answer["status"]
    yield about.ok("answers", f"version {status['version']}")
    yield version(about, status["version"], facts.ours)
    yield state(about, status["member"])
    yield lease(about, status["member"])
    yield from warnings(about, status["warnings"])
    yield worker(about, facts.answer["worker"])
    yield from members(status["members"], status["node"], status["version"])
    yield protocol(status.get("protocol") or {}, status["members"])
    yield from snapshots(status["snapshots"])
    yield waits(facts.answer["waits"], status["member"]["lease_ttl_seconds"])
    yield from fencing(status["fencing"])


def version(about: Subject, running: str, ours: str) -> Finding:
    if running != ours:
        return about.warning("version", f"runs {running}, installed is {ours}", "restart the daemon on this host")
    return about.ok("version", f"{running}, as installed")


def state(about: Subject, member: Mapping[str, Any]) -> Finding:
    shown = member["state"] + (f": {member['why']}" if member["why"] else "")
    if member["state"] == "active":
        return about.ok("state", shown)
    if member["state"] == "leaving":
        return about.note("state", shown)
    todo = {
        "joining": "put right what it names",
        "stalled": "bring etcd back: nothing fails, everything waits",
        "fenced": "start it again; then find out why its lease ended",
    }
    return about.failed("state", shown, todo.get(member["state"], "csnap status"))


def lease(about: Subject, member: Mapping[str, Any]) -> Finding:
    left, ttl = member["lease_remaining_seconds"], member["lease_ttl_seconds"]
    if not ttl:
        return about.unchecked("lease", "none yet")
    if left <= 0:
        return about.failed("lease", "it has run out", "bring etcd back")
    if left < ttl / 2:
        return about.warning("lease", f"{left} s left of {ttl} s", "keepalives fail: see the checks of etcd")
    return about.ok("lease", f"{left} s left of {ttl} s")


def warnings(about: Subject, told: Sequence[str]) -> Iterator[Finding]:
    """But for what has a check of its own."""
    found = [text for text in told if not text.startswith(("etcd ", "fencing is unsafe"))]
    if not found:
        yield about.ok("warnings", "none")
    for text in found:
        todo = next((advice for word, advice in ADVICE.items() if word in text), "docs/operations.md")
        yield about.warning("warnings", text, todo)


def worker(about: Subject, found: Mapping[str, Any] | None) -> Finding:
    if found is None:
        return about.failed("worker", "it has not begun", "csnap status says what the daemon waits for")
    if found["heartbeat_age_seconds"] > HEARTBEAT_MOST:
        return about.failed(
            "worker", f"its loop last turned {found['heartbeat_age_seconds']:.0f} s ago", "a device that hangs? dmesg"
        )
    if found["oldest_seconds"] > OLDEST_MOST:
        return about.warning(
            "worker",
            f"its oldest request is {found['oldest_seconds']:.0f} s old",
            "csnap top, csnap trace: what waits?",
        )
    if found["errors"]:
        return about.note(
            "worker", f"{found['errors']} requests were answered with an error since its start", "journal"
        )
    return about.ok("worker", f"{found['inflight']} requests under way, none failed since its start")


def members(rows: Sequence[Mapping[str, Any]], here: str, ours: str) -> Iterator[Finding]:
    if not rows:
        yield Subject(MEMBERS).unchecked("state", "no member record is known")
    for row in rows:
        about = Subject(MEMBERS, row["node"])
        shown = row["state"] + (f" (by {row['by']})" if row["by"] else "")
        if row["state"] == "active":
            yield about.ok("state", shown)
        else:
            yield about.failed("state", shown, "is that host down? csnap status; docs/fencing.md")
        found = ours if row["node"] == here else row.get("version") or ""
        if not found:
            yield about.unchecked("version", "its record does not say: csnap version there")
        elif found != ours:
            yield about.warning("version", f"{found}, here {ours}", "finish the upgrade")
        else:
            yield about.ok("version", found)


def protocol(told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Finding:
    about = Subject(MEMBERS)
    force = told.get("in_force") or 0
    if not force:
        return about.unchecked("protocol", "the volume's protocol is not known")
    mute = [row["node"] for row in rows if row.get("protocols") and not _speaks(row["protocols"], force)]
    if mute:
        return about.failed("protocol", f"{force} in force; not spoken by {', '.join(mute)}", "upgrade csnap there")
    if told["spoken_by_all"] > force:
        return about.note(
            "protocol",
            f"{force} in force, all speak {told['spoken_by_all']}",
            "csnap volume upgrade, when no host goes back",
        )
    return about.ok("protocol", f"{force} in force, spoken by all")


def _speaks(span: Sequence[int], protocol_in_force: int) -> bool:
    return bool(span[0] <= protocol_in_force <= span[1])


def snapshots(rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    if not rows:
        yield Subject(SNAPSHOTS).ok("state", "there are none")
    for row in rows:
        about = Subject(SNAPSHOTS, row["name"])
        percent = row["percent_full"]
        if row["state"] in ("invalid", "overflow"):
            yield about.failed("state", f"{row['state']}: it is lost", f"csnap snapshot delete CONFIG {row['name']}")
            continue
        if row["state"] != "active":
            yield about.note("state", row["state"], "if it stays so: csnap snapshot delete")
        else:
            yield about.ok("state", row["state"])
        if percent is None:
            yield about.warning("full", "its COW device is not loaded here", "csnap status says why")
        elif percent >= FULL_FAILED:
            yield about.failed(
                "full", f"{percent} %: at 100 % it is lost", "copy out what is needed and delete it, now"
            )
        elif percent >= FULL_WARNING:
            yield about.warning("full", f"{percent} %", "finish what it is for and delete it")
        else:
            yield about.ok("full", f"{percent} %")


def waits(rows: Sequence[Mapping[str, Any]], ttl: float) -> Finding:
    about = Subject(LOCKS)
    if not rows:
        return about.ok("waits", "nobody waits")
    oldest = max(rows, key=lambda row: row["since_seconds"])
    holders = ", ".join(holder["node"] for holder in oldest["holders"]) or "nobody"
    shown = f"{oldest['node']} for {oldest['resource']}, {oldest['since_seconds']:.1f} s, held by {holders}"
    if oldest["since_seconds"] > max(ttl, WAIT_NOTE):
        return about.failed("waits", shown, "is the holder alive? csnap top; runbook.md#csnaplockwaitoverttl")
    if oldest["since_seconds"] > WAIT_NOTE:
        return about.note("waits", shown, "csnap top shows whether it goes on")
    return about.ok("waits", shown)


def fencing(found: Mapping[str, Any]) -> Iterator[Finding]:
    about = Subject(FENCING)
    if found["method"] == "unsafe":
        yield about.warning("method", "unsafe: it fences nobody", "docs/fencing.md: choose a method that fences")
    else:
        yield about.ok("method", found["method"])
    for row in found["waiting"]:
        yield Subject(FENCING, row["node"]).failed(
            "waiting",
            f"waited for since {row['since_seconds']:.0f} s, by {row['by']}: its locks stay until then",
            "journal of that host (fence_failed); csnap fence confirm, if you are sure that it is off",
        )


def checked(facts: CheckFacts) -> Finding:
    about = Subject(SNAPSHOTS, facts.name)
    if facts.error:
        return about.unchecked("check", f"{facts.path}: {facts.error}")
    if facts.problems:
        shown = facts.problems[0] + (f" and {len(facts.problems) - 1} more" if len(facts.problems) > 1 else "")
        return about.failed("check", shown, f"csnap check {facts.path}; runbook.md#csnapmetadatacorrupt")
    return about.ok("check", f"{facts.path}: sound")


def registration(facts: Registration) -> Finding:
    about = Subject(FENCING, facts.device)
    if facts.registered is None:
        return about.unchecked("reservation", facts.why)
    if not facts.registered:
        return about.failed(
            "reservation",
            "this host's path has not the running daemon's key: it was fenced, or the device lost its registrations",
            "restart csnap here; csnap fence test",
        )
    return about.ok("reservation", "this host's path has the running daemon's key")
