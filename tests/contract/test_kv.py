"""What csnap relies on in etcd, asked of the real one through our driver and of the one in memory alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from snapd.lockspace.kv import (
    Compare,
    Delete,
    Failure,
    KeyValue,
    Operation,
    Put,
    Range,
    RangeResult,
    Target,
    Txn,
    TxnResult,
    WatchEvents,
    WatchLost,
    prefix_end,
)
from snapd.lockspace.pages import PAGE, read_prefix
from tests.support.etcd_server import EtcdServer
from tests.support.kv_rig import TIMEOUT, FakeRig, RealRig, Recorder, Rig

CREATE, MOD = Target.CREATE, Target.MOD
GONE = 0x7777  # a lease that nobody granted


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as one:
        yield one


@pytest.fixture(params=["real", "fake"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    one: Rig = FakeRig() if request.param == "fake" else RealRig(request.getfixturevalue("server"))
    yield one
    one.close()


@pytest.fixture(params=["real", "fake"])
def full_rig(request: pytest.FixtureRequest) -> Iterator[tuple[Rig, int]]:
    """An etcd that has a key and a lease, and then no space left."""
    if request.param == "fake":
        fake = FakeRig()
        put_all(fake, "a")
        lease = fake.lease(fake.kv.lease_grant, 60).lease
        fake.etcd.no_space = True
        yield fake, lease
        return
    with EtcdServer(arguments=["--quota-backend-bytes", "2000000"]) as small:
        real = RealRig(small)
        put_all(real, "a")
        lease = real.lease(real.kv.lease_grant, 60).lease
        for number in range(100):
            answer = real.run(Txn((), (Put(f"/fill/{number}", bytes(500_000)),)))
            if isinstance(answer, Failure):
                break
        yield real, lease
        real.close()


def put_all(rig: Rig, *names: str, value: bytes = b"") -> int:
    """Put keys under the rig's prefix in one transaction; return its revision."""
    return rig.done(Txn((), tuple(Put(rig.prefix + name, value) for name in names))).revision


def everything(rig: Rig) -> Range:
    return Range(rig.prefix, prefix_end(rig.prefix))


def test_branches(rig: Rig) -> None:
    """The compares choose the branch; results stand in the order of its operations."""
    key = rig.prefix + "k"
    txn = Txn((Compare(key, CREATE, 0),), (Put(key, b"1"), Range(key)), (Range(key), Delete(key)))
    first = rig.done(txn)
    kv = KeyValue(key, b"1", first.revision, first.revision)
    assert first == TxnResult(True, first.revision, (None, RangeResult((kv,))))
    second = rig.done(txn)
    assert second == TxnResult(False, first.revision + 1, (RangeResult((kv,)), None))
    assert rig.range(Range(key)) == (RangeResult(()), second.revision)


def test_every_compare_must_hold(rig: Rig) -> None:
    """One false compare is enough for the other branch; no compare at all is true."""
    revision = put_all(rig, "a")
    good, bad = Compare(rig.prefix + "a", MOD, revision), Compare(rig.prefix + "a", MOD, revision - 1)
    assert rig.done(Txn((good, good), ())).succeeded
    assert not rig.done(Txn((good, bad), ())).succeeded
    assert rig.done(Txn((), ())).succeeded


def test_nested_transaction_sees_the_state_before(rig: Rig) -> None:
    """A nested compare sees nothing of the transaction it stands in; its range does; its own revision is 0."""
    key = rig.prefix + "k"
    inner = Txn((Compare(key, CREATE, 0),), (Range(key),), (Put(rig.prefix + "wrong", b""),))
    result = rig.done(Txn((), (Put(key, b"x"), inner)))
    kv = KeyValue(key, b"x", result.revision, result.revision)
    assert result.results == (None, TxnResult(True, 0, (RangeResult((kv,)),)))


def test_compares_on_an_empty_range(rig: Rig) -> None:
    """An empty range compares like one key with all revisions 0: equal to 0, to nothing else."""
    end = prefix_end(rig.prefix)
    for target in (CREATE, MOD):
        assert rig.done(Txn((Compare(rig.prefix, target, 0, end),), ())).succeeded
        assert not rig.done(Txn((Compare(rig.prefix, target, 5, end),), ())).succeeded


def test_compares_on_a_range(rig: Rig) -> None:
    """A compare with a range holds if it holds for every key in it."""
    together = put_all(rig, "a", "b")
    end = prefix_end(rig.prefix)
    assert rig.done(Txn((Compare(rig.prefix, MOD, together, end),), ())).succeeded
    assert not rig.done(Txn((Compare(rig.prefix, CREATE, 0, end),), ())).succeeded
    put_all(rig, "b")
    assert not rig.done(Txn((Compare(rig.prefix, MOD, together, end),), ())).succeeded
    assert rig.done(Txn((Compare(rig.prefix, CREATE, together, end),), ())).succeeded


def test_compares_that_say_less(rig: Rig) -> None:
    """Nothing in a range has changed since a revision: true of an empty range, false for one key put behind it."""
    end = prefix_end(rig.prefix)
    revision = put_all(rig, "a", "b")
    since = Compare(rig.prefix, MOD, revision + 1, end, less=True)
    assert rig.done(Txn((since,), ())).succeeded
    assert not rig.done(Txn((Compare(rig.prefix, MOD, revision, end, less=True),), ())).succeeded
    rig.done(Txn((), (Delete(rig.prefix + "a"),)))
    assert rig.done(Txn((since,), ())).succeeded
    put_all(rig, "c")
    assert not rig.done(Txn((since,), ())).succeeded
    rig.done(Txn((), (Delete(rig.prefix, end),)))
    assert rig.done(Txn((since,), ())).succeeded


def test_create_and_mod_revision(rig: Rig) -> None:
    """Putting keeps create_revision and moves mod_revision, also with an equal value; a key put again is new."""
    key = rig.prefix + "k"
    first, second = put_all(rig, "k"), put_all(rig, "k")
    assert second == first + 1
    assert rig.range(Range(key))[0].kvs == (KeyValue(key, b"", first, second),)
    rig.done(Txn((), (Delete(key),)))
    fourth = put_all(rig, "k")
    assert rig.range(Range(key))[0].kvs == (KeyValue(key, b"", fourth, fourth),)


def test_what_changes_nothing_makes_no_revision(rig: Rig) -> None:
    """Reading and deleting nothing leave the revision; several changes in one transaction make one."""
    revision = put_all(rig, "a", "b", "c")
    assert rig.done(Txn((), (Range(rig.prefix), Delete(rig.prefix + "none")))).revision == revision
    end = prefix_end(rig.prefix)
    assert rig.done(Txn((), (Delete(rig.prefix, end), Delete(rig.prefix, end)))).revision == revision + 1


def test_ranges(rig: Rig) -> None:
    """A range is sorted, ends before range_end, obeys limit, revision and keys_only."""
    revision = put_all(rig, "b", "a", "c", value=b"v")
    put_all(rig, "a", value=b"new")
    rig.done(Txn((), (Delete(rig.prefix + "b"),)))

    def names(request: Range) -> tuple[list[tuple[str, bytes]], bool]:
        result, _ = rig.range(request)
        return [(kv.key.removeprefix(rig.prefix), kv.value) for kv in result.kvs], result.more

    a, c, end = rig.prefix + "a", rig.prefix + "c", prefix_end(rig.prefix)
    assert names(Range(rig.prefix, end)) == ([("a", b"new"), ("c", b"v")], False)
    assert names(Range(rig.prefix, end, limit=1)) == ([("a", b"new")], True)
    assert names(Range(rig.prefix, end, limit=2)) == ([("a", b"new"), ("c", b"v")], False)
    assert names(Range(rig.prefix, end, revision=revision)) == ([("a", b"v"), ("b", b"v"), ("c", b"v")], False)
    assert names(Range(a, c)) == ([("a", b"new")], False)
    assert names(Range(a + "\0", end, keys_only=True)) == ([("c", b"")], False)
    assert names(Range(a, revision=revision - 1)) == ([], False)


def test_pages_are_of_one_moment(rig: Rig) -> None:
    """A prefix read in pages shows one revision though keys change between the pages."""
    names = [f"{number:03}" for number in range(25)]
    revision = put_all(rig, *names, value=b"old")
    answers: list[tuple[tuple[KeyValue, ...] | Failure, int]] = []
    read_prefix(rig.kv, rig.prefix, TIMEOUT, lambda kvs, at: answers.append((kvs, at)), page=10)
    rig.kv.txn(Txn((), tuple(Put(rig.prefix + name, b"new") for name in names)), TIMEOUT, lambda result: None)
    rig.wait(lambda: bool(answers))
    kvs, at = answers[0]
    assert not isinstance(kvs, Failure)
    assert [kv.key for kv in kvs] == [rig.prefix + name for name in names]
    assert {kv.mod_revision for kv in kvs} == {at}
    assert at in (revision, revision + 1)


def test_many_keys(rig: Rig) -> None:
    """A prefix with more keys than a page holds is read whole, in order."""
    names = [f"{number:05}" for number in range(2 * PAGE + 1)]
    for at in range(0, len(names), 128):
        put_all(rig, *names[at : at + 128])
    answers: list[tuple[KeyValue, ...] | Failure] = []
    read_prefix(rig.kv, rig.prefix, TIMEOUT, lambda kvs, at: answers.append(kvs))
    rig.wait(lambda: bool(answers))
    assert not isinstance(answers[0], Failure)
    assert [kv.key.removeprefix(rig.prefix) for kv in answers[0]] == names


def test_impossible_revisions(rig: Rig) -> None:
    """A range in the future or before the compaction is refused by name, also inside a transaction."""
    old = put_all(rig, "a")
    revision = put_all(rig, "a")
    rig.compact(revision)
    for bad, word in ((revision + 1000, "future"), (old, "compacted")):
        request = Range(rig.prefix + "a", revision=bad)
        answer, _ = rig.range_or_failure(request)
        assert isinstance(answer, Failure)
        assert not answer.ambiguous
        assert word in answer.message
        assert word in rig.refused(Txn((), (request,))).message
    assert rig.range(Range(rig.prefix + "a", revision=revision))[0].kvs


def test_refused_transactions(rig: Rig) -> None:
    """One key changed twice, an empty key, an unknown lease: refused, nothing happens."""
    key, end = rig.prefix + "k", prefix_end(rig.prefix)
    put = Put(key, b"")
    for operations, word in (
        ((put, put), "duplicate"),
        ((put, Delete(key)), "duplicate"),
        ((Delete(rig.prefix, end), put), "duplicate"),
        ((put, Txn((), (put,))), "duplicate"),
        ((Txn((), (), (put,)), Delete(key)), "duplicate"),
        ((Put("", b""),), "key is not provided"),
        ((Put(rig.prefix + "other", b""), Put(key, b"", GONE)), "lease not found"),
    ):
        assert word in rig.refused(Txn((), operations)).message
    assert not rig.range(everything(rig))[0].kvs
    assert rig.done(Txn((), (Txn((), (put,), (put,)),))).succeeded  # one or the other


def test_at_most_128_operations(rig: Rig) -> None:
    """128 operations are allowed, nested ones counted in."""

    def puts(count: int) -> tuple[Operation, ...]:
        return tuple(Put(f"{rig.prefix}{number}", b"") for number in range(count))

    assert rig.done(Txn((), puts(128))).succeeded
    assert "too many operations" in rig.refused(Txn((), puts(129))).message
    assert rig.done(Txn((), (Txn((), puts(127)),))).succeeded
    assert "too many operations" in rig.refused(Txn((), (Txn((), puts(128)),))).message


def test_lease_life(rig: Rig) -> None:
    """A lease is granted at least as asked, kept alive, revoked with its keys; gone, its TTL is 0, and no error."""
    granted = rig.lease(rig.kv.lease_grant, 20)
    assert granted.ttl >= 20
    other = rig.lease(rig.kv.lease_grant, 30)
    assert other.lease != granted.lease
    a, b, c = rig.prefix + "a", rig.prefix + "b", rig.prefix + "c"
    revision = rig.done(Txn((), tuple(Put(key, b"", granted.lease) for key in (a, b, c)))).revision
    assert rig.range(Range(a))[0].kvs[0].lease == granted.lease
    rig.done(Txn((), (Put(b, b""), Put(c, b"", other.lease))))  # they leave the lease
    assert rig.lease(rig.kv.lease_keepalive, granted.lease) == granted
    assert rig.lease(rig.kv.lease_revoke, granted.lease).ttl <= 0
    result, now = rig.range(everything(rig))
    assert [kv.key for kv in result.kvs] == [b, c]
    assert now == revision + 2
    assert rig.lease(rig.kv.lease_keepalive, granted.lease).ttl <= 0
    assert rig.lease(rig.kv.lease_revoke, granted.lease).ttl <= 0
    assert rig.lease(rig.kv.lease_keepalive, GONE).ttl <= 0
    assert rig.lease(rig.kv.lease_revoke, other.lease).ttl <= 0


def test_lease_expiry(rig: Rig) -> None:
    """An expired lease takes its keys along in one revision, and says TTL 0 afterwards."""
    lease = rig.lease(rig.kv.lease_grant, 1).lease
    a, b = rig.prefix + "a", rig.prefix + "b"
    revision = rig.done(Txn((), (Put(b, b"", lease), Put(a, b"", lease)))).revision
    recorder = rig.watch(rig.prefix, revision + 1)
    rig.wait(lambda: bool(recorder.notices))
    notice = recorder.notices[0]
    assert isinstance(notice, WatchEvents)
    assert [(event.kv.key, event.deleted) for event in notice.events] == [(a, True), (b, True)]
    assert {event.kv.mod_revision for event in notice.events} == {revision + 1}
    assert rig.lease(rig.kv.lease_keepalive, lease).ttl <= 0
    recorder.watch.cancel()


def test_keepalive_prolongs(rig: Rig) -> None:
    """A lease that is kept alive outlives one that is not."""
    kept, left = (rig.lease(rig.kv.lease_grant, 2).lease for _ in range(2))
    revision = rig.done(Txn((), (Put(rig.prefix + "kept", b"", kept), Put(rig.prefix + "left", b"", left)))).revision
    recorder = rig.watch(rig.prefix, revision + 1)
    while not recorder.events():
        assert rig.lease(rig.kv.lease_keepalive, kept).ttl > 0
    assert recorder.events()[0][0] == rig.prefix + "left"
    assert rig.lease(rig.kv.lease_revoke, kept).ttl <= 0


def test_watch_order(rig: Rig) -> None:
    """Events come in the order of revisions and, in one transaction, of operations; only those of the prefix."""
    revision = put_all(rig, "0")
    recorder = rig.watch(rig.prefix, revision + 1)
    put_all(rig, "b", "a", value=b"1")
    rig.done(Txn((), (Put("/elsewhere" + rig.prefix, b""), Put(rig.prefix[:-1], b""))))
    rig.done(Txn((), (Delete(rig.prefix + "a"), Put(rig.prefix + "b", b"2"))))
    rig.wait(lambda: len(recorder.events()) >= 4)
    b, a = rig.prefix + "b", rig.prefix + "a"
    assert recorder.events() == [(b, b"1", False), (a, b"1", False), (a, b"", True), (b, b"2", False)]
    for notice in recorder.notices:
        assert isinstance(notice, WatchEvents)
        assert notice.revision == notice.events[-1].kv.mod_revision
    last = recorder.notices[-1]
    assert isinstance(last, WatchEvents)
    assert last.revision == revision + 3
    assert (last.events[-1].kv.create_revision, last.events[-1].kv.mod_revision) == (revision + 1, revision + 3)
    assert last.events[-2].kv == KeyValue(a, b"", 0, revision + 3)
    recorder.watch.cancel()


def test_watch_from_the_past(rig: Rig) -> None:
    """A watch begins exactly at its start revision, be it past or future."""
    put_all(rig, "a", value=b"1")
    second = put_all(rig, "a", value=b"2")
    past, future = rig.watch(rig.prefix, second), rig.watch(rig.prefix, second + 2)
    put_all(rig, "a", value=b"3")
    put_all(rig, "a", value=b"4")
    rig.wait(lambda: len(past.events()) >= 3 and bool(future.events()))
    assert [value for _, value, _ in past.events()] == [b"2", b"3", b"4"]
    assert [value for _, value, _ in future.events()] == [b"4"]
    past.watch.cancel()
    future.watch.cancel()


def test_watch_progress(rig: Rig) -> None:
    """A progress request is answered though nothing happens."""
    recorder = rig.watch(rig.prefix, put_all(rig, "a") + 1)
    recorder.watch.request_progress()
    rig.wait(recorder.progressed)
    assert not recorder.events()
    recorder.watch.cancel()


def test_watch_of_a_compacted_revision_is_lost(rig: Rig) -> None:
    """A watch that would begin before the compaction ends with a reason, and only once."""
    old = put_all(rig, "a")
    put_all(rig, "a")
    revision = put_all(rig, "a")
    rig.compact(revision)
    recorder = rig.watch(rig.prefix, old)
    rig.wait(recorder.lost)
    assert len(recorder.notices) == 1
    assert isinstance(recorder.notices[0], WatchLost)
    assert "compacted" in recorder.notices[0].reason
    recorder.watch.request_progress()
    recorder.watch.cancel()


def test_running_watch_survives_compaction(rig: Rig) -> None:
    """Compaction does not disturb a watch that has caught up."""
    recorder = rig.watch(rig.prefix, put_all(rig, "a") + 1)
    recorder.watch.request_progress()
    rig.wait(recorder.progressed)
    rig.compact(put_all(rig, "a"))
    put_all(rig, "b")
    rig.wait(lambda: len(recorder.events()) >= 2)
    assert not recorder.lost()
    recorder.watch.cancel()


def test_cancelled_watch_is_silent(rig: Rig) -> None:
    """After ``cancel`` nothing is notified, not even what was on its way."""
    revision = put_all(rig, "a")
    cancelled, other = rig.watch(rig.prefix, revision + 1), rig.watch(rig.prefix, revision + 1)
    answers: list[object] = []
    rig.kv.txn(Txn((), (Put(rig.prefix + "b", b""),)), TIMEOUT, answers.append)
    rig.wait(lambda: bool(answers))  # the event may have come, or be on its way
    cancelled.watch.cancel()
    seen = len(cancelled.notices)
    put_all(rig, "c")
    rig.wait(lambda: len(other.events()) >= 2)
    assert len(cancelled.notices) == seen
    other.watch.cancel()


def test_no_space(full_rig: tuple[Rig, int]) -> None:
    """Without space a transaction with a put and a grant fail by name; reads, keepalives and deletes go on."""
    rig, lease = full_rig
    key = rig.prefix + "a"
    failure = rig.refused(Txn((Compare(key, CREATE, 12345),), (Put(rig.prefix + "b", b""),), (Range(key),)))
    assert failure.no_space
    grants: list[object] = []
    rig.kv.lease_grant(10, TIMEOUT, grants.append)
    rig.wait(lambda: bool(grants))
    assert isinstance(grants[0], Failure)
    assert grants[0].no_space
    assert rig.lease(rig.kv.lease_keepalive, lease).ttl > 0
    assert rig.range(Range(key))[0].kvs
    assert rig.done(Txn((Compare(key, CREATE, 0),), (Delete(key),), (Range(key),))).results[0] is not None
    assert rig.done(Txn((), (Delete(key),))).succeeded
    assert not rig.range(Range(key))[0].kvs


def random_operations(rng: random.Random, prefix: str, depth: int) -> tuple[Operation, ...]:
    def key() -> str:
        return prefix + rng.choice("abcdef")

    def ends() -> tuple[str, str]:
        first, last = sorted((key(), key()))
        return first, rng.choice(["", last, prefix_end(prefix)])

    choices: list[Callable[[], Operation]] = [
        lambda: Put(key(), rng.randbytes(1)),
        lambda: Delete(*ends()),
        lambda: Range(*ends(), limit=rng.randrange(3), keys_only=rng.random() < 0.2),
    ]
    if depth:
        choices.append(lambda: random_txn(rng, prefix, depth - 1))
    return tuple(rng.choice(choices)() for _ in range(rng.randrange(4)))


def random_txn(rng: random.Random, prefix: str, depth: int = 2) -> Txn:
    compares = []
    for _ in range(rng.randrange(2)):
        first, last = sorted((rng.choice("abcdef"), rng.choice("abcdef")))
        compares.append(Compare(prefix + first, CREATE, 0, rng.choice(["", prefix + last])))
    return Txn(tuple(compares), random_operations(rng, prefix, depth), random_operations(rng, prefix, depth))


def relative(result: object, base: int) -> object:
    """Return a result with its revisions counted from ``base``, so that two etcds can be compared."""
    if isinstance(result, TxnResult):
        inner = tuple(relative(one, base) for one in result.results)
        return (result.succeeded, result.revision and result.revision - base, inner)
    if isinstance(result, RangeResult):
        kvs = tuple((kv.key, kv.value, kv.create_revision - base, kv.mod_revision - base) for kv in result.kvs)
        return (kvs, result.more)
    if isinstance(result, Failure):
        return result.message.rpartition("etcdserver: ")[2]
    return result


def saw_last(recorder: Recorder) -> bool:
    return any(key == "/random/last" for key, _, _ in recorder.events())


def test_random_transactions_agree(server: EtcdServer) -> None:
    """Real and fake etcd answer 400 random transactions, and the watch over them, alike."""
    real, fake = RealRig(server), FakeRig()
    rng = random.Random(20)
    seen = []
    for rig in (real, fake):
        rig.prefix = "/random/"
        base = rig.range(Range(rig.prefix))[1]
        seen.append((rig, base, rig.watch(rig.prefix, base + 1)))
    refusals = 0
    for _ in range(400):
        txn = random_txn(rng, "/random/")
        answers = [relative(rig.run(txn), base) for rig, base, _ in seen]
        assert answers[0] == answers[1], txn
        refusals += isinstance(answers[0], str)
    assert 0 < refusals < 200
    for rig, _, recorder in seen:
        put_all(rig, "last")
        rig.wait(partial(saw_last, recorder))
    assert seen[0][2].events() == seen[1][2].events()
    real.close()
