"""The witness itself: what must not be is seen."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from snapd.lockspace.etcd_sync import EtcdSync
from snapd.lockspace.kv import Delete, Operation, Put, Txn
from tests.battery.observer import Observer
from tests.support.etcd_server import EtcdServer, wait_for

VOLUME, STORE = str(uuid4()), str(uuid4())


class Rig:
    """An etcd, a witness, and a hand that puts anything."""

    def __init__(self, etcd: EtcdSync, observer: Observer) -> None:
        self._etcd, self.observer = etcd, observer

    def change(self, **keys: bytes | None) -> list[str]:
        """Put or delete keys in one transaction, ``__`` for ``/``; return what the witness has against it."""
        operations: list[Operation] = []
        for name, value in keys.items():
            key = f"/csnap/{VOLUME}/{name.replace('__', '/').replace('STORE', STORE)}"
            operations.append(Delete(key) if value is None else Put(key, value))
        result = self._etcd.txn(Txn((), tuple(operations)))
        wait_for(lambda: self.observer.revision >= result.revision, "the witness has seen it")
        return self.observer.problems


@pytest.fixture
def rig() -> Iterator[Rig]:
    with EtcdServer() as server, EtcdSync([server.url]) as etcd, Observer([server.url], VOLUME) as observer:
        yield Rig(etcd, observer)


def test_two_owners_are_seen(rig: Rig) -> None:
    """EX beside EX or CR of another host is a problem; CR beside CR, and a hand-over in one transaction, are not."""
    assert rig.change(h__region__1__CR__a=b"i", h__region__1__CR__b=b"i") == []
    assert rig.change(h__region__2__EX__a=b"i") == []
    assert rig.change(h__region__2__EX__a=None, h__region__2__EX__b=b"i") == []
    assert rig.observer.handed_over == 1
    assert len(rig.change(h__region__2__CR__a=b"i")) == 1


def test_a_counter_that_goes_back_is_seen(rig: Rig) -> None:
    """Also behind a mark; a counter that was deleted begins anew."""
    for value in (b"5", b"?", b"7", b"7"):
        assert rig.change(v__STORE=value) == []
    rig.change(v__STORE=None)
    assert rig.change(v__STORE=b"1") == []
    rig.change(v__STORE=b"?")
    assert len(rig.change(v__STORE=b"0")) == 1
