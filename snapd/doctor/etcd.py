"""Verdicts on etcd: every endpoint for itself, then the cluster."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapd.doctor.finding import Finding, Subject
from snapd.errors import Refused
from snapd.lockspace.version import check_version
from snapd.units import format_size

AREA = "etcd"

CERTIFICATE_WARNING, CERTIFICATE_NOTE = 14.0, 45.0  # days left
CLOCK_WARNING = 5.0
"""Seconds. HTTP dates are whole seconds; leases do not care, certificates and logs do."""

QUOTA_WARNING, QUOTA_FAILED = 80.0, 95.0  # percent
FRAGMENTED = 0.5
"""Share in use below which defragmenting is worth mentioning, from FRAGMENTED_FROM bytes on."""

FRAGMENTED_FROM = 256 << 20
YOUNG = 1000
"""Revisions after which auto-compaction should have run at least once; a volume at rest makes none."""

KEPT_MOST = 1_000_000
LAG_MOST = 1000
"""Raft entries that a member has received and not applied: more, and its answers are old."""

RTT_NOTE = 0.1  # seconds
RTT_WARNING, RTT_FAILED = 0.25, 0.5  # of the TTL


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """``error``: why it does not answer. None: not told, or asked without an answer. Times in seconds, sizes in bytes.

    ``clock_offset``: its clock minus ours; ``certificate_days``: until its TLS certificate ends."""

    url: str
    error: str = ""
    version: str = ""
    member: int = 0
    leader: int = 0
    term: int = 0
    raft_index: int = 0
    revision: int = 0
    size: int = 0
    in_use: int | None = None
    quota: int | None = None
    alarms: tuple[str, ...] = ()
    trips: tuple[float, ...] = ()
    clock_offset: float | None = None
    certificate_days: float | None = None
    certificate_error: str = ""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """``oldest``: the oldest revision that can still be read; None: not known. ``read_trips``: linearizable reads."""

    endpoints: tuple[EndpointFacts, ...]
    members: tuple[str, ...] | None
    oldest: int | None
    read_trips: tuple[float, ...]
    ttl: int  # seconds
    allow_old: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A TLS file of the configuration. ``days``: until the certificate in it ends; None: a key."""

    path: str
    what: str
    error: str = ""
    days: float | None = None
    readable_by_all: bool = False


def judge(facts: ClusterFacts) -> Iterator[Finding]:
    for endpoint in facts.endpoints:
        yield from judge_endpoint(endpoint, facts)
    about = Subject(AREA)
    yield quorum(about, facts)
    yield leader(about, facts.endpoints)
    yield redundancy(about, facts)
    yield versions(about, facts.endpoints)
    yield compaction(about, facts)
    yield lag(about, facts.endpoints)
    yield reads(about, facts)


def judge_endpoint(facts: EndpointFacts, cluster: ClusterFacts) -> Iterator[Finding]:
    about = Subject(AREA, facts.url)
    if facts.url.startswith("https"):
        yield certificate(about, facts)
    if facts.error:
        yield about.failed("endpoint", facts.error, "start it, or mend the way to it; csnap goes on with the others")
        return
    yield about.ok("endpoint", f"answers, version {facts.version}")
    yield version(about, facts.version, cluster.allow_old)
    yield alarms(about, facts.alarms)
    yield quota(about, facts)
    yield fragmentation(about, facts)
    yield trips(about, "round_trip", facts.trips, cluster.ttl)
    yield clock(about, facts.clock_offset)


def certificate(about: Subject, facts: EndpointFacts) -> Finding:
    if facts.certificate_days is None:
        return about.unchecked("certificate", facts.certificate_error or "it sends no certificate")
    return expiry(about, "certificate", facts.certificate_days)


def expiry(about: Subject, check: str, days: float) -> Finding:
    if days <= 0:
        return about.failed(check, f"expired {-days:.0f} days ago", "renew it: nothing trusts it any more")
    if days < CERTIFICATE_WARNING:
        return about.warning(check, f"ends in {days:.0f} days", "renew it now")
    if days < CERTIFICATE_NOTE:
        return about.note(check, f"ends in {days:.0f} days", "plan its renewal")
    return about.ok(check, f"ends in {days:.0f} days")


def version(about: Subject, found: str, allow_old: bool) -> Finding:
    try:
        warning = check_version(found, allow_old)
    except Refused as error:
        return about.failed("version", str(error), "upgrade etcd; the newest 3.5 or 3.6")
    if warning:
        return about.warning("version", warning, "upgrade etcd; the newest 3.5 or 3.6")
    return about.ok("version", f"{found}: no bug known that csnap minds")


def alarms(about: Subject, found: Sequence[str]) -> Finding:
    if any("NOSPACE" in alarm for alarm in found):
        return about.failed(
            "alarm",
            "NOSPACE: it refuses every write; locks do not move",
            "etcdctl compact REVISION; etcdctl defrag; etcdctl alarm disarm (operations.md, When etcd is in trouble)",
        )
    if any("CORRUPT" in alarm for alarm in found):
        return about.failed("alarm", "CORRUPT: its data differ from the others'", "replace this member by a new one")
    if found:
        return about.warning("alarm", "; ".join(found), "see etcd's log")
    return about.ok("alarm", "none")


def quota(about: Subject, facts: EndpointFacts) -> Finding:
    if not facts.quota:
        return about.unchecked("quota", f"{_size(facts.size)} in all; its /metrics does not tell the quota")
    percent = 100 * facts.size / facts.quota
    shown = f"{_size(facts.size)} of {_size(facts.quota)}, {percent:.0f} %"
    todo = "etcdctl compact, then defrag each member; look at auto-compaction"
    if percent >= QUOTA_FAILED:
        return about.failed("quota", f"{shown}: nearly full", todo)
    if percent >= QUOTA_WARNING:
        return about.warning("quota", shown, todo)
    return about.ok("quota", shown)


def fragmentation(about: Subject, facts: EndpointFacts) -> Finding:
    if facts.in_use is None:
        return about.unchecked("fragmentation", "its /metrics does not tell what is in use")
    if facts.size >= FRAGMENTED_FROM and facts.in_use < FRAGMENTED * facts.size:
        shown = f"{_size(facts.in_use)} in use of {_size(facts.size)}"
        return about.note("fragmentation", shown, "etcdctl defrag, one member at a time")
    return about.ok("fragmentation", f"{_size(facts.in_use)} in use")


def trips(about: Subject, check: str, found: Sequence[float], ttl: int) -> Finding:
    """Against the lease: a keepalive is two trips, and a third of the TTL apart from the next one."""
    if not found:
        return about.unchecked(check, "no answer was timed")
    median, most = statistics.median(found), max(found)
    shown = f"median {median * 1000:.1f} ms, at most {most * 1000:.1f} ms of {len(found)}; lease_ttl {ttl} s"
    todo = "look at etcd's disks (etcd_disk_wal_fsync_duration_seconds) and the network, or raise lease_ttl"
    if most > RTT_FAILED * ttl:
        return about.failed(check, shown, todo)
    if most > RTT_WARNING * ttl:
        return about.warning(check, shown, todo)
    if median > RTT_NOTE:
        return about.note(check, shown, todo)
    return about.ok(check, shown)


def clock(about: Subject, offset: float | None) -> Finding:
    if offset is None:
        return about.unchecked("clock", "it tells no date over HTTP")
    if abs(offset) > CLOCK_WARNING:
        return about.warning(
            "clock",
            f"{abs(offset):.0f} s {'before' if offset > 0 else 'behind'} this host's",
            "let both keep time by NTP; leases do not need it, certificates and logs do",
        )
    return about.ok("clock", f"within {max(1.0, abs(offset)):.0f} s of this host's")


# ---- the cluster


def quorum(about: Subject, facts: ClusterFacts) -> Finding:
    if facts.members is None:
        return about.unchecked("quorum", facts.error or "no endpoint tells its members")
    alive = len({endpoint.member for endpoint in facts.endpoints if not endpoint.error})
    needed = len(facts.members) // 2 + 1
    shown = f"{alive} of {len(facts.members)} members answer on the configured endpoints, {needed} are needed"
    if alive >= needed:
        return about.ok("quorum", shown)
    if facts.read_trips:
        return about.note("quorum", shown + "; there is one all the same", "configure an endpoint for every member")
    return about.failed("quorum", shown, "bring members back: without a quorum no lock moves and leases end")


def leader(about: Subject, endpoints: Sequence[EndpointFacts]) -> Finding:
    alive = [endpoint for endpoint in endpoints if not endpoint.error]
    leaders = {endpoint.leader for endpoint in alive}
    if not alive:
        return about.unchecked("leader", "no endpoint answers")
    if 0 in leaders:
        names = ", ".join(endpoint.url for endpoint in alive if not endpoint.leader)
        return about.failed("leader", f"none, says {names}", "look at the peers' network and etcd's log")
    if len(leaders) > 1:
        return about.warning("leader", "the members name different ones", "run it again; then look at etcd's log")
    return about.ok("leader", f"one, in term {max(endpoint.term for endpoint in alive)}")


def redundancy(about: Subject, facts: ClusterFacts) -> Finding:
    if facts.members is None:
        return about.unchecked("members", facts.error or "no endpoint tells its members")
    count, configured = len(facts.members), len(facts.endpoints)
    if count < 3:
        return about.warning("members", f"{count}: the loss of one stops every volume", "run three or five members")
    if count % 2 == 0:
        return about.note("members", f"{count}: an even number survives no more losses than one less")
    if configured < count:
        return about.note("members", f"{count}, {configured} endpoints are configured", "name them all in endpoints")
    return about.ok("members", f"{count}, every one with an endpoint")


def versions(about: Subject, endpoints: Sequence[EndpointFacts]) -> Finding:
    found = sorted({endpoint.version for endpoint in endpoints if not endpoint.error})
    if len(found) > 1:
        return about.warning("versions", f"different ones: {', '.join(found)}", "finish the upgrade")
    if not found:
        return about.unchecked("versions", "no endpoint answers")
    return about.ok("versions", f"{found[0]} everywhere")


def compaction(about: Subject, facts: ClusterFacts) -> Finding:
    revision = max((endpoint.revision for endpoint in facts.endpoints), default=0)
    if facts.oldest is None:
        return about.unchecked("compaction", facts.error or "no endpoint tells its history")
    kept = revision - facts.oldest
    todo = "start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=1h; until then etcdctl compact"
    if facts.oldest <= 1:
        if revision <= YOUNG:
            return about.note("compaction", f"not yet in {revision} revisions, too few to tell whether it is on")
        return about.warning("compaction", f"never in {revision} revisions: the database grows until it is full", todo)
    if kept > KEPT_MOST:
        return about.warning("compaction", f"{kept} revisions are kept", todo)
    return about.ok("compaction", f"{kept} of {revision} revisions are kept")


def lag(about: Subject, endpoints: Sequence[EndpointFacts]) -> Finding:
    alive = [endpoint for endpoint in endpoints if not endpoint.error]
    if not alive:
        return about.unchecked("lag", "no endpoint answers")
    newest = max(endpoint.raft_index for endpoint in alive)
    behind = [f"{endpoint.url} by {newest - endpoint.raft_index}" for endpoint in alive
              if newest - endpoint.raft_index > LAG_MOST]  # fmt: skip
    if behind:
        return about.warning("lag", f"behind the others: {', '.join(behind)}", "look at that member's disk and network")
    return about.ok("lag", "the members are level")


def reads(about: Subject, facts: ClusterFacts) -> Finding:
    if not facts.read_trips:
        return about.failed("reads", facts.error or "no linearizable read was answered", "see the other checks of etcd")
    return trips(about, "reads", facts.read_trips, facts.ttl)


def judge_file(facts: FileFacts) -> Iterator[Finding]:
    about = Subject(AREA, f"{facts.path} ({facts.what})")
    if facts.error:
        yield about.unchecked("tls_file", facts.error)
        return
    if facts.days is not None:
        yield expiry(about, "tls_file", facts.days)
    elif facts.readable_by_all:
        yield about.warning("tls_file", "everybody may read this key", f"chmod o= {facts.path}")
    else:
        yield about.ok("tls_file", "a key that not everybody may read")


def _size(count: int) -> str:
    """Whole MiB: these are no powers of two."""
    return format_size(count) if count < 1 << 20 else f"{count / (1 << 20):.0f}MiB"
