"""The etcd driver: ``kv.Kv`` over gRPC. With ``etcd_descriptors`` the only importer of etcd3, grpc and protobuf.

    etcd = Etcd(["https://10.0.0.1:2379", ...], loop.call_soon_threadsafe, Tls(ca, cert, key))

Raw stubs only: the package's locks and watcher are unusable. Calls go out from the owner's thread and never
block; completions come from gRPC's threads and are handed to the owner by ``post``. One channel per endpoint;
a call goes to the current one, and a call that found it unavailable or silent makes the next one current.
Nothing is repeated here. Make the driver after any fork; after ``close`` nothing is delivered any more.

Ambiguous, for whatever can change something: every outcome but an answer and the refusals that etcd gives
before it proposes anything (``_DEFINITE``). Of "resource exhausted" only etcd's own is definite: a response larger
than the client takes has the same code, and its transaction was applied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc

from snapd.errors import ConfigError
from snapd.lockspace import etcd_values as values
from snapd.lockspace.etcd_descriptors import rpc
from snapd.lockspace.kv import (
    Event,
    Failure,
    LeaseResult,
    Range,
    RangeResult,
    Status,
    Txn,
    TxnResult,
    WatchEvents,
    WatchLost,
    WatchProgress,
    prefix_end,
)
from snapd.lockspace.lineage import Lineage

T = TypeVar("T")
Post = Callable[[Callable[[], None]], None]
Notice = WatchEvents | WatchProgress | WatchLost

SECOND = 1_000_000_000
JOIN_TIMEOUT = 2.0  # seconds; a watch thread ends as soon as its call is cancelled
MAX_MESSAGE = 64 << 20  # bytes; a watch that starts in the past may bring thousands of events at once

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 5_000),  # etcd tells clients that ping more often to go away
    ("grpc.http2.ping_timeout_ms", 3_000),  # a silent host is noticed within 8 s, on watches too
    ("grpc.use_local_subchannel_pool", 1),  # a connection of our own: no other channel's backoff
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # gRPC's own 120 s outlive any lease
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.enable_http_proxy", 0),  # locks do not go through whatever http_proxy names
)

_WITH_LEADER = (("hasleader", "true"),)  # a member without a leader ends the watch instead of being silent

_DEFINITE = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_ROTATE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files. ``cert`` and ``key`` make it mutual: the certificate's CN is the etcd user."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def credentials(self) -> Any:
        """Raises ConfigError for a file that cannot be read."""
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


def _pem(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise ConfigError(f"etcd TLS file {path}: {error.strerror}") from error


def parse_endpoint(endpoint: str) -> tuple[str, bool]:
    """Return gRPC's target and whether it takes TLS. Raises ConfigError."""
    try:
        url = urlsplit(endpoint)
        good = (
            url.scheme in ("http", "https")
            and url.hostname
            and url.port
            and url.path in ("", "/")
            and "@" not in url.netloc
        )
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"etcd endpoint {endpoint!r}, expected http(s)://host:port")
    return url.netloc, url.scheme == "https"


class _Endpoint:
    """One etcd member's address with its channel and stubs, made when first used."""

    def __init__(self, url: str, tls: Tls | None) -> None:
        self.url = url
        target, secure = parse_endpoint(url)
        if tls is not None and not secure:
            raise ConfigError(f"etcd endpoint {url!r} is plaintext though TLS is configured, expected https://")
        if secure:
            self.channel = grpc.secure_channel(target, (tls or Tls()).credentials(), options=CHANNEL_OPTIONS)
        else:
            self.channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self.kv = rpc.KVStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.maintenance = rpc.MaintenanceStub(self.channel)
        # On the wire a stream of one request and one answer is a unary call, and a unary call needs no thread.
        self.keepalive = self.channel.unary_unary(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=rpc.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=rpc.LeaseKeepAliveResponse.FromString,
        )


def to_failure(code: Any, details: str, where: str, writes: bool) -> Failure:
    """Say what a gRPC status means for the caller."""
    message = f"etcd {where}: {code.name.lower().replace('_', ' ')}: {details}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith("etcdserver:"):
        return Failure(message, ambiguous=False, no_space="space exceeded" in details)
    definite = code in _DEFINITE
    return Failure(message, ambiguous=writes and not definite, refused=definite)


class Etcd:
    """See the module. All methods are for the owner's thread."""

    def __init__(self, endpoints: Sequence[str], post: Post, tls: Tls | None = None) -> None:
        if not endpoints:
            raise ConfigError("no etcd endpoint is configured")
        self._endpoints = [_Endpoint(url, tls) for url in endpoints]
        self._current = 0
        self._post_to_owner = post
        self._lineage = Lineage()
        self._watches: list[EtcdWatch] = []
        self._closed = False

    def txn(self, txn: Txn, timeout: int, done: Callable[[TxnResult | Failure], None]) -> None:
        self._call(
            lambda endpoint: endpoint.kv.Txn,
            values.txn_request(txn),
            timeout,
            values.txn_result,
            lambda result, revision: done(result),
            writes=txn.writes(),
        )

    def range(self, request: Range, timeout: int, done: Callable[[RangeResult | Failure, int], None]) -> None:
        self._call(
            lambda endpoint: endpoint.kv.Range,
            values.range_request(request),
            timeout,
            values.range_result,
            done,
            writes=False,
        )

    def lease_grant(self, ttl: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._call(
            lambda endpoint: endpoint.lease.LeaseGrant,
            rpc.LeaseGrantRequest(TTL=ttl),
            timeout,
            lambda response: LeaseResult(response.ID, response.TTL),
            lambda result, revision: done(result),
        )

    def lease_keepalive(self, lease: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._call(
            lambda endpoint: endpoint.keepalive,
            rpc.LeaseKeepAliveRequest(ID=lease),
            timeout,
            lambda response: LeaseResult(lease, response.TTL),
            lambda result, revision: done(result),
            lags=True,
        )

    def lease_revoke(self, lease: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._call(
            lambda endpoint: endpoint.lease.LeaseRevoke,
            rpc.LeaseRevokeRequest(ID=lease),
            timeout,
            lambda response: LeaseResult(lease, 0),
            lambda result, revision: done(result),
            not_found=LeaseResult(lease, 0),
        )

    def status(self, timeout: int, done: Callable[[Status | Failure], None]) -> None:
        """Ask the current endpoint's member for its version, size and alarms."""
        self._call(
            lambda endpoint: endpoint.maintenance.Status,
            rpc.StatusRequest(),
            timeout,
            lambda response: Status(response.version, response.dbSize, tuple(response.errors)),
            lambda result, revision: done(result),
            writes=False,
            lags=True,
        )

    def watch(self, prefix: str, start_revision: int, notify: Callable[[Notice], None]) -> EtcdWatch:
        watch = EtcdWatch(self, self._endpoints[self._current], prefix, start_revision, notify)
        self._watches = [other for other in self._watches if other.alive()] + [watch]
        return watch

    def close(self) -> None:
        """Cancel everything, deliver nothing more, and wait for the watch threads."""
        if self._closed:
            return
        self._closed = True
        for watch in self._watches:
            watch.cancel()
        for endpoint in self._endpoints:
            endpoint.channel.close()
        for watch in self._watches:
            watch.join(JOIN_TIMEOUT)

    def post(self, action: Callable[[], None]) -> None:
        """From any thread: let the owner run ``action``, unless this is closed by then."""
        if not self._closed:
            try:
                self._post_to_owner(lambda: None if self._closed else action())
            except RuntimeError:  # the owner's loop is closed: nobody is left to be told
                return

    def check_cluster(self, cluster_id: int) -> Failure | None:
        return self._lineage.check(cluster_id)

    def rotate(self, endpoint: _Endpoint) -> None:
        """This endpoint failed: use the next one, unless that was done already."""
        if self._endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    def _call(
        self,
        method: Callable[[_Endpoint], Any],
        request: Any,
        timeout: int,
        decode: Callable[[Any], T],
        done: Callable[[T | Failure, int], None],
        *,
        writes: bool = True,
        lags: bool = False,
        not_found: T | None = None,
    ) -> None:
        """``lags``: the header's revision proves nothing. ``not_found``: what that code means here."""
        if self._closed:
            return
        endpoint = self._endpoints[self._current]
        floor = self._lineage.newest

        def complete() -> None:
            code = future.code()
            if code is not grpc.StatusCode.OK:
                if code in _ROTATE:
                    self.rotate(endpoint)
                if code is grpc.StatusCode.NOT_FOUND and not_found is not None:
                    done(not_found, 0)
                else:
                    done(to_failure(code, future.details() or "", endpoint.url, writes), 0)
                return
            response = future.result()
            header = response.header
            if lags:
                lost = self._lineage.check(header.cluster_id)
            else:
                lost = self._lineage.check(header.cluster_id, header.revision, floor)
            if lost is not None:
                done(lost, 0)
            else:
                done(decode(response), header.revision)

        future = method(endpoint).future(request, timeout=timeout / SECOND)
        future.add_done_callback(lambda _: self.post(complete))


class EtcdWatch:
    """One Watch stream. Its thread reads and posts; it has no deadline: whoever needs one asks for progress."""

    def __init__(
        self, etcd: Etcd, endpoint: _Endpoint, prefix: str, start_revision: int, notify: Callable[[Notice], None]
    ) -> None:
        self._etcd = etcd
        self._endpoint = endpoint
        self._notify = notify
        self._ended = False
        self._created = False
        self._parts: list[Event] = []  # of a response that comes in fragments
        self._requests: SimpleQueue[Any] = SimpleQueue()
        create = rpc.WatchCreateRequest(
            key=values.key_bytes(prefix),
            range_end=values.key_bytes(prefix_end(prefix)),
            start_revision=start_revision,
            fragment=True,
        )
        self._requests.put(rpc.WatchRequest(create_request=create))
        self._call = endpoint.watch.Watch(iter(self._requests.get, None), metadata=_WITH_LEADER)
        self._thread = threading.Thread(target=self._read, name="etcd-watch", daemon=True)
        self._thread.start()

    def request_progress(self) -> None:
        if not self._ended:
            self._requests.put(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    def cancel(self) -> None:
        self._ended = True
        self._requests.put(None)
        self._call.cancel()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _read(self) -> None:
        """On the watch's own thread."""
        reason, failed = "the stream ended", True
        try:
            for response in self._call:
                self._post(response)
        except grpc.RpcError as error:
            code: Any = error
            reason = to_failure(code.code(), code.details() or "", self._endpoint.url, writes=False).message
            failed = code.code() is not grpc.StatusCode.CANCELLED
        finally:
            self._requests.put(None)
        self._etcd.post(lambda: self._lose(reason, failed))

    def _post(self, response: Any) -> None:
        self._etcd.post(lambda: self._received(response))

    def _received(self, response: Any) -> None:
        if self._ended:
            return
        lost = self._etcd.check_cluster(response.header.cluster_id)
        if lost is not None:
            self._lose(lost.message)
        elif response.compact_revision:
            self._lose(f"etcd {self._endpoint.url}: compacted up to revision {response.compact_revision}")
        elif response.canceled:
            self._lose(f"etcd {self._endpoint.url}: watch cancelled: {response.cancel_reason}")
        elif response.created:
            self._created = True
        elif self._created:
            self._deliver(response)

    def _deliver(self, response: Any) -> None:
        self._parts.extend(values.event(event) for event in response.events)
        if response.fragment:
            return
        events, self._parts = tuple(self._parts), []
        if events:
            self._notify(WatchEvents(events, events[-1].kv.mod_revision))
        else:
            self._notify(WatchProgress())

    def _lose(self, reason: str, failed: bool = False) -> None:
        """In the owner's thread: the stream is over, say so once. ``failed``: its endpoint did."""
        if self._ended:
            return
        if failed:
            self._etcd.rotate(self._endpoint)
        self.cancel()
        self._notify(WatchLost(reason))
