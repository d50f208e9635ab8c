"""Asks etcd: each endpoint by gRPC, and by HTTP for what only that tells (its date, its quota, its certificate)."""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from snapd.config import LockspaceConfig
from snapd.doctor.certificate import ends, pem_ends
from snapd.doctor.etcd import ClusterFacts, EndpointFacts, FileFacts
from snapd.errors import CsnapError

LIMIT = 3.0  # seconds for an HTTP answer
TRIPS = 5
METRICS_MOST = 8 << 20

T = TypeVar("T")


def gather(config: LockspaceConfig, key: str) -> ClusterFacts:
    """``key``: one of the volume's, that its user may read."""
    from snapd.lockspace.etcd import Tls  # with gRPC, which nothing else of the command line needs
    from snapd.lockspace.etcd_look import Look

    tls = Tls(config.ca, config.cert, config.key) if config.ca or config.cert else None
    endpoints: list[EndpointFacts] = []
    members: tuple[str, ...] | None = None
    oldest: int | None = None
    reads: tuple[float, ...] = ()
    errors: list[str] = []
    for url in config.endpoints:
        try:
            with Look(url, tls) as look:
                status = look.status()
                trips = tuple(look.timed_status() for _ in range(TRIPS))
                alarms = _or(look.alarms, status.alarms, errors)
                members = members if members is not None else _or(look.members, None, errors)
                if not reads:
                    reads = _or(lambda look=look: tuple(look.timed_read(key) for _ in range(TRIPS)), (), errors)  # type: ignore[misc]
                if oldest is None:
                    oldest = _or(lambda look=look, at=status.revision: look.oldest_revision(key, at), None, errors)  # type: ignore[misc]
        except CsnapError as error:
            endpoints.append(_by_http(EndpointFacts(url, str(error)), config))
            continue
        found = EndpointFacts(
            url=url,
            version=status.version,
            member=status.member,
            leader=status.leader,
            term=status.term,
            raft_index=status.raft_index,
            revision=status.revision,
            size=status.size,
            alarms=alarms,
            trips=trips,
        )
        endpoints.append(_by_http(found, config))
    return ClusterFacts(
        tuple(endpoints), members, oldest, reads, config.lease_ttl, config.allow_old_etcd, "; ".join(errors[:2])
    )


def _or(ask: Callable[[], T], otherwise: T, errors: list[str]) -> T:
    """What a member may refuse to tell is asked all the same."""
    try:
        return ask()
    except CsnapError as error:
        errors.append(str(error))
        return otherwise


def _by_http(facts: EndpointFacts, config: LockspaceConfig) -> EndpointFacts:
    days, certificate_error = _certificate(facts.url, config)
    if facts.error:  # nobody waits for it twice
        return replace(facts, certificate_days=days, certificate_error=certificate_error)
    offset, in_use, quota = None, None, None
    try:
        context = _context(facts.url, config, verify=True)
        offset = _offset(facts.url, context)
        text = _get(facts.url, context, "/metrics")[1]
        in_use = _metric(text, "etcd_mvcc_db_total_size_in_use_in_bytes")
        quota = _metric(text, "etcd_server_quota_backend_bytes")
    except (OSError, http.client.HTTPException, ValueError):
        pass  # the client port may serve gRPC alone
    return replace(
        facts,
        clock_offset=offset,
        in_use=in_use,
        quota=quota,
        certificate_days=days,
        certificate_error=certificate_error,
    )


def _context(url: str, config: LockspaceConfig, verify: bool) -> ssl.SSLContext | None:
    if not url.startswith("https"):
        return None
    context = ssl.create_default_context(cafile=config.ca or None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.cert:
        context.load_cert_chain(config.cert, config.key)
    return context


def _certificate(url: str, config: LockspaceConfig) -> tuple[float | None, str]:
    """Days until the server's certificate ends. Not verified: one that has expired is what is looked for."""
    if not url.startswith("https"):
        return None, ""
    connection = None
    try:
        connection = _connection(url, _context(url, config, verify=False))
        connection.connect()
        der = connection.sock.getpeercert(binary_form=True) if isinstance(connection.sock, ssl.SSLSocket) else None
        return (_days(ends(der)), "") if der else (None, "it sends no certificate")
    except (OSError, http.client.HTTPException, CsnapError) as error:
        return None, str(error)
    finally:
        if connection is not None:
            connection.close()


def _days(end: datetime) -> float:
    return (end - datetime.now(UTC)).total_seconds() / 86400


def _connection(url: str, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if context is not None:
        return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=LIMIT, context=context)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=LIMIT)


def _get(url: str, context: ssl.SSLContext | None, path: str) -> tuple[str, str]:
    """Date and body."""
    connection = _connection(url, context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.headers.get("Date", ""), answer.read(METRICS_MOST).decode("utf-8", "replace")
    finally:
        connection.close()


def _offset(url: str, context: ssl.SSLContext | None) -> float | None:
    """Its clock minus ours, in seconds: its date is cut to whole ones, so half of one is added."""
    begun = time.time()
    date, _ = _get(url, context, "/version")
    if not date:
        return None
    return parsedate_to_datetime(date).timestamp() + 0.5 - (begun + time.time()) / 2


def _metric(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return int(float(found[1])) if found is not None else None


def files(config: LockspaceConfig) -> tuple[FileFacts, ...]:
    """The TLS files of the configuration."""
    named = ((config.ca, "ca"), (config.cert, "cert"), (config.key, "key"))
    return tuple(_file(path, what) for path, what in named if path)


def _file(path: str, what: str) -> FileFacts:
    try:
        if what == "key":
            return FileFacts(path, what, readable_by_all=bool(Path(path).stat().st_mode & 0o004))
        return FileFacts(path, what, days=_days(pem_ends(Path(path).read_bytes())))
    except OSError as error:
        return FileFacts(path, what, error=f"{error.strerror}: of a unit's credentials, they exist while it runs")
    except CsnapError as error:
        return FileFacts(path, what, error=str(error))
