"""The metrics: every family from the start, what the numbers mean, and an endpoint that nobody can hold up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from snapd import counters
from snapd.daemon.endpoint import Sampler
from snapd.daemon.families import FAMILIES, HISTOGRAM, INFO
from snapd.daemon.metrics import CsnapCollector, Observations, Sample, snapshot_slots
from snapd.daemon.observed import ObservedKv, code
from snapd.daemon.status import dm_status
from snapd.lockspace.kv import Event, Failure, KeyValue, Put, Txn, TxnResult, WatchEvents
from snapd.lockspace.member import LockRow
from snapd.lockspace.records import SnapshotRecord
from snapd.messages import CR, EX
from snapd.units import SECOND
from tests.support.looped import Looped

ROOT = Path(__file__).parents[2]
STORE = "0b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"


class Scene:
    """A registry over a page and a sample that the test sets."""

    def __init__(self) -> None:
        self.words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")
        self.observations = Observations()
        self.sample = Sample(now=100 * SECOND, node="host-a", fencing="unsafe")
        self.registry = CollectorRegistry()
        CsnapCollector(self.registry, self.observations, self.words, lambda: self.sample)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def value(self, name: str, **labels: str) -> float:
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        raise AssertionError(f"no {name}{labels}")


@pytest.fixture
def scene() -> Scene:
    return Scene()


def full_name(name: str, kind: str) -> str:
    return f"csnap_{name}" + {"counter": "_total", INFO: "_info"}.get(kind, "")


def test_every_family_is_there_from_the_start(scene: Scene) -> None:
    """HELP and TYPE of all of them, before anything has happened and before a member exists."""
    text = scene.text()
    for family in FAMILIES:
        name = full_name(family.name, family.kind)
        assert f"# HELP {name} " in text and f"# TYPE {name} " in text


def test_every_counter_of_a_known_kind_is_0_from_the_start(scene: Scene) -> None:
    """All but who was fenced: an increase from nothing to 1 is none to Prometheus."""
    families = {family.name: family for family in text_string_to_metric_families(scene.text())}
    for family in FAMILIES:
        if family.kind in ("counter", HISTOGRAM) and family.name != "fence_events":
            samples = families[f"csnap_{family.name}"].samples
            assert samples and not any(sample.value for sample in samples), family.name


def test_names_keep_to_the_conventions() -> None:
    """No name twice, base units, counters without their suffix in the table, bounded label names."""
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", family.name)
        assert not family.name.endswith(("_total", "_info", "_ms", "_ns", "_kb"))
        assert not {"chunk", "key", "client"} & set(family.labels)


def test_the_documentation_lists_exactly_these() -> None:
    """docs/metrics.md names every family with its labels, and none that does not exist."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    listed = dict(re.findall(r"^\| `(csnap_[a-z0-9_]+)` \| [a-z]+ \| ([^|]*) \|", text, re.MULTILINE))
    wanted = {full_name(family.name, family.kind): family.labels for family in FAMILIES}
    assert {name: tuple(re.findall(r"`([a-z]+)`", labels)) for name, labels in listed.items()} == wanted


def test_whatever_the_source_observes_has_a_family() -> None:
    """Every name passed to ``observe`` under snapd/ is a family's: anything else would be dropped silently."""
    names = {family.name for family in FAMILIES}
    found = set()
    for path in (ROOT / "snapd").rglob("*.py"):
        found |= set(re.findall(r"observe\(\s*\"([a-z_]+)\"", path.read_text()))
    assert {"lock_wait_seconds", "fence_events_total", "etcd_request_seconds"} <= found
    assert {name.removesuffix("_total") for name in found} <= names


def test_observed_durations_become_histograms(scene: Scene) -> None:
    """Nanoseconds in, seconds out; a value on a bound is counted in it; beyond the last one in +Inf."""
    labels = {"mode": "EX", "resource": "region"}
    for value in (50_000, 50_001, 40 * SECOND):
        scene.observations.observe("lock_wait_seconds", labels, value)
    assert scene.value("csnap_lock_wait_seconds_bucket", le="5e-05", **labels) == 1
    assert scene.value("csnap_lock_wait_seconds_bucket", le="0.0001", **labels) == 2
    assert scene.value("csnap_lock_wait_seconds_bucket", le="30.0", **labels) == 2
    assert scene.value("csnap_lock_wait_seconds_bucket", le="+Inf", **labels) == 3
    assert scene.value("csnap_lock_wait_seconds_count", **labels) == 3
    assert scene.value("csnap_lock_wait_seconds_sum", **labels) == pytest.approx(40.000100001)


def test_observed_amounts_become_counters(scene: Scene) -> None:
    """Labels in any order; with and without ``_total``; what no family fits is dropped, not raised."""
    for _ in range(2):
        scene.observations.observe("lock_demotions_total", {"to": "NL", "from": "EX", "reason": "revoked"}, 1)
    scene.observations.observe("no_such_family", {}, 1)
    scene.observations.observe("lock_demotions_total", {"to": "NL"}, 1)
    assert scene.value("csnap_lock_demotions_total", **{"from": "EX", "to": "NL", "reason": "revoked"}) == 2


def test_the_worker_counts_in_the_page(scene: Scene) -> None:
    """Rows become histograms with bounds of powers of two nanoseconds, words become counters and gauges."""
    words, row = scene.words, counters.IO["origin", "write"]
    counters.note(words, row, 4096, 5_000)
    counters.note(words, row, 512, 1)
    counters.note_error(words, "origin", "write", 28)
    counters.note_error(words, "origin", "write", 121)
    words[counters.INVALIDATIONS["full"]] = 2
    words[counters.CORRUPTIONS["header"]] = 3
    counters.note_together(words, counters.BACKEND["cow", "flush"], 4, 5_000)
    words[counters.OLDEST] = 97 * SECOND
    words[counters.HEARTBEAT] = 99 * SECOND
    words[counters.CACHED["region", "EX"]] = 7
    for size in (1, 200):
        counters.note(words, counters.BATCH, 0, size)
    labels = {"device": "origin", "op": "write"}
    assert scene.value("csnap_io_seconds_bucket", le=str(2**12 / SECOND), **labels) == 1
    assert scene.value("csnap_io_seconds_bucket", le=str(2**13 / SECOND), **labels) == 2
    assert scene.value("csnap_io_bytes_total", **labels) == 4608
    assert scene.value("csnap_io_errors_total", errno="ENOSPC", **labels) == 1
    assert scene.value("csnap_io_errors_total", errno="other", **labels) == 1
    assert scene.value("csnap_io_errors_total", errno="EIO", **labels) == 0
    assert scene.value("csnap_snapshot_invalidations_total", reason="full") == 2
    assert scene.value("csnap_metadata_corruption_total", what="header") == 3
    assert scene.value("csnap_backend_io_seconds_count", backend="cow", op="flush") == 4
    assert scene.value("csnap_backend_io_seconds_sum", backend="cow", op="flush") == pytest.approx(20e-6)
    assert scene.value("csnap_io_oldest_inflight_seconds") == 3
    assert scene.value("csnap_worker_heartbeat_age_seconds") == 1
    assert scene.value("csnap_cow_commit_batch_exceptions_sum") == 201
    assert scene.value("csnap_cow_commit_batch_exceptions_bucket", le="2.0") == 1
    cached = {"mode": "EX", "resource": "region", "source": "cached", "result": "granted"}
    assert scene.value("csnap_lock_acquisitions_total", **cached) == 7


def test_every_label_of_the_page_is_documented() -> None:
    """docs/metrics.md has each reason, kind and errno that the worker counts under."""
    text = (ROOT / "docs" / "metrics.md").read_text().partition("## Labels")[2]
    words = {*counters.LOSSES, *counters.CORRUPTION_KINDS, *counters.ERRNOS.values(), counters.OTHER}
    assert {word for word in words if not re.search(rf"\b{word}\b", text)} == set()


def lock(resource: str, node: str, mode: int, waiting: bool, since: int) -> LockRow:
    return LockRow(resource, node, mode, waiting, since, 1)


def test_only_this_members_locks_are_counted(scene: Scene) -> None:
    """Every host shows its own, so a sum over hosts counts each once; the oldest wait is the oldest ticket's."""
    scene.sample = Sample(
        now=100 * SECOND,
        node="host-a",
        fencing="agent",
        state="active",
        lease_remaining=5 * SECOND,
        locks=[
            lock("table", "host-a", CR, False, 0),
            lock("region/1", "host-a", EX, False, 0),
            lock("region/2", "host-a", EX, False, 0),
            lock("region/3", "host-a", CR, True, 96 * SECOND),
            lock("region/4", "host-a", CR, True, 98 * SECOND),
            lock("region/5", "host-b", EX, False, 0),
        ],
    )
    assert scene.value("csnap_locks_held", mode="EX", resource="region") == 2
    assert scene.value("csnap_lock_waiters", mode="CR", resource="region") == 2
    assert scene.value("csnap_lock_waiters", mode="EX", resource="tail") == 0
    assert scene.value("csnap_lock_oldest_wait_seconds", mode="CR", resource="region") == 4
    assert scene.value("csnap_lock_oldest_wait_seconds", mode="EX", resource="region") == 0
    assert scene.value("csnap_member_state", state="active") == 1
    assert scene.value("csnap_member_state", state="stalled") == 0
    assert scene.value("csnap_fencing_info", method="agent") == 1


def fill_slot(words: memoryview, store: str, state: str, allocated: int = 1664, total: int = 16384) -> None:
    number, first = int(store.replace("-", ""), 16), counters.SNAPSHOTS
    values = (number >> 64, number & (1 << 64) - 1, allocated, total, 256, 51, counters.STATES.index(state))
    for index, value in enumerate(values):
        words[first + index] = value


def test_snapshots_are_shown_by_name(scene: Scene) -> None:
    """Slots are found by the store's uuid; sectors become bytes."""
    fill_slot(scene.words, STORE, "active")
    scene.sample = Sample(
        now=1,
        node="a",
        fencing="unsafe",
        snapshots=(SnapshotRecord("s1", STORE, "/dev/cow", "id", "active", False, 1, 1),),
    )
    assert scene.value("csnap_cow_used_bytes", snapshot="s1") == 1664 * 512
    assert scene.value("csnap_cow_size_bytes", snapshot="s1") == 16384 * 512
    assert scene.value("csnap_cow_exceptions", snapshot="s1") == 51
    assert scene.value("csnap_snapshot_state", snapshot="s1", state="active") == 1
    assert scene.value("csnap_snapshot_info", snapshot="s1", store=STORE, cow="/dev/cow", writable="false") == 1


def test_dm_status_speaks_the_kernels_words(scene: Scene) -> None:
    """allocated/total metadata; Invalid and Overflow whoever says it first; Unknown before anything is loaded."""
    fill_slot(scene.words, STORE, "active")
    slot = snapshot_slots(scene.words)[STORE]
    assert dm_status("active", slot) == "1664/16384 256"
    assert dm_status("invalid", slot) == "Invalid"
    assert dm_status("overflow", slot) == "Overflow"
    assert dm_status("active", None) == "Unknown"
    fill_slot(scene.words, STORE, "invalid")
    assert dm_status("active", snapshot_slots(scene.words)[STORE]) == "Invalid"


# ---- etcd, observed


class Scripted:
    """A Kv that answers every transaction with what the test says, and keeps the watch's notify."""

    def __init__(self) -> None:
        self.answer: TxnResult | Failure = TxnResult(True, 10)

    def txn(self, txn, timeout, done):  # type: ignore[no-untyped-def]
        done(self.answer)

    def watch(self, prefix, start_revision, notify):  # type: ignore[no-untyped-def]
        self.notify = notify


def test_requests_are_counted_by_what_came_of_them() -> None:
    """The code is bounded, and says what the caller has to do; nothing of the answer is changed."""
    kv, seen, answers = Scripted(), [], []
    observed = ObservedKv(kv, lambda name, labels, value: seen.append((name, labels, value)), iter(range(99)).__next__)  # type: ignore[arg-type]
    put = Txn((), (Put("k", b"v"),))
    for answer in (TxnResult(True, 10), Failure("x", True), Failure("full", False, no_space=True)):
        kv.answer = answer
        observed.txn(put, 1, answers.append)
    assert [labels["code"] for _, labels, _ in seen] == ["ok", "ambiguous", "no_space"]
    assert {(name, labels["op"], value) for name, labels, value in seen} == {("etcd_request_seconds", "txn", 1)}
    assert [type(answer) for answer in answers] == [TxnResult, Failure, Failure]
    assert observed.no_space
    kv.answer = TxnResult(True, 12)
    observed.txn(put, 1, answers.append)
    assert not observed.no_space


def test_watch_lag_is_what_the_watch_has_not_shown_of_our_own() -> None:
    """After a transaction at revision 12 it is behind until the watch shows 12."""
    kv = Scripted()
    observed = ObservedKv(kv, lambda name, labels, value: None, lambda: 0)  # type: ignore[arg-type]
    observed.watch("/p/", 11, lambda notice: None)
    kv.answer = TxnResult(True, 12)
    observed.txn(Txn((), (Put("k", b"v"),)), 1, lambda result: None)
    assert observed.lag == 2
    kv.notify(WatchEvents((Event(KeyValue("k", b"v", 12, 12), False),), 12))
    assert observed.lag == 0


def test_codes_are_bounded() -> None:
    """Every way to fail has one word."""
    assert code(Failure("", False)) == "unavailable"
    assert code(Failure("", False, refused=True)) == "refused"
    assert code(Failure("", True, wrong_cluster=True)) == "wrong_cluster"


# ---- the scrape


def test_samples_are_taken_in_the_loop(scene: Scene) -> None:
    """Fresh while the loop runs; the last one when it has ended."""
    taken = []

    def take() -> Sample:
        taken.append(1)
        return Sample(now=len(taken), node="a", fencing="unsafe")

    with Looped() as looped:
        sampler = looped.call(lambda: Sampler(looped.loop, take))
        assert sampler().now == 2
    assert sampler().now == 2


def test_histograms_are_whole(scene: Scene) -> None:
    """Each histogram's +Inf bucket equals its count, or scrapers would reject it."""
    for family in FAMILIES:
        if family.kind == HISTOGRAM and family.name.startswith("lock"):
            scene.observations.observe(family.name, dict.fromkeys(family.labels, "x"), 99 * SECOND)
    for metric in text_string_to_metric_families(scene.text()):
        if metric.type == "histogram":
            whole = {tuple(s.labels.items()): s.value for s in metric.samples if s.name.endswith("_count")}
            for sample in metric.samples:
                if sample.labels.get("le") == "+Inf":
                    rest = tuple(item for item in sample.labels.items() if item[0] != "le")
                    assert whole[rest] == sample.value
