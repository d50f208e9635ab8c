"""Restarts of ``csnap serve`` under a service manager that is played: what is kept, when, and what is not."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator

import pytest

from demo.host import environment
from snapd.daemon.fdstore import FORGET_LIMIT
from snapd.units import MIB
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.nbd_client import NbdClient
from tests.support.service_manager import ServiceManager
from tests.support.writers import writers

READY, STORE, REMOVE = "READY=1", "FDSTORE=1\nFDNAME=csnap", "FDSTOREREMOVE=1\nFDNAME=csnap"


@pytest.fixture
def manager() -> Iterator[ServiceManager]:
    with ServiceManager() as made:
        yield made


@pytest.fixture
def one(manager: ServiceManager) -> Iterator[Hosts]:
    """A cluster of one host that the service manager has started."""
    with Hosts(1) as cluster:
        cluster[0].csnap("volume", "init", "CONFIG")
        start(manager, cluster[0])
        cluster[0].wait_active()
        yield cluster


def start(manager: ServiceManager, host: Daemon) -> None:
    assert host.process is None
    host.process = manager.start(host.serve(), environment(), host.log)


def test_a_restart_keeps_the_clients(manager: ServiceManager, one: Hosts) -> None:
    """Under two writing threads, twice: no error, the same connections; what was kept is forgotten, confirmed, before
    the new daemon is ready; the snapshot is unchanged."""
    host = one[0]
    host.csnap("snapshot", "create", "CONFIG", "s1", "--cow", one.cow("c1"))
    with writers(host.socket, 2) as load, NbdClient(host.socket, "snapshot/s1") as reader:
        before = reader.read(0, 4 * MIB)
        for count in (1, 2):
            load.wait_progress()
            assert host.terminate() == 0
            assert len(manager.stored) == 1 + 3 + 1
            assert manager.messages[-2:] == [STORE, "BARRIER=1"]
            start(manager, host)
            host.wait_active()
            load.wait_progress()
            assert manager.stored == [] and manager.messages.count(REMOVE) == count
            after = [text for text in manager.messages if text in (READY, STORE, REMOVE, "BARRIER=1")]
            assert after[-5:] == [STORE, "BARRIER=1", REMOVE, "BARRIER=1", READY]
        assert reader.read(0, 4 * MIB) == before
    assert load.errors == []
    load.verify(host.socket)


def test_an_unclean_leave_keeps_nothing(manager: ServiceManager, one: Hosts) -> None:
    """etcd does not answer: the locks are not released, so the clients are disconnected and connect again."""
    host = one[0]
    with NbdClient(host.socket) as client:
        one.etcd.pause()
        assert host.terminate() == 0
        assert client.gone()
    assert STORE not in manager.messages
    one.etcd.resume()
    start(manager, host)
    host.wait_active()
    with NbdClient(host.socket) as client:
        assert client.write(0, b"n" * 512) == 0


def test_an_interrupt_keeps_nothing(manager: ServiceManager, one: Hosts) -> None:
    """SIGINT is a person at a terminal, without anybody who starts it again: what is received is answered."""
    host = one[0]
    with NbdClient(host.socket) as client:
        assert host.process is not None
        host.process.send_signal(signal.SIGINT)
        assert host.wait_exit() == 0
        assert client.gone()
    assert STORE not in manager.messages


def test_a_start_that_does_not_get_far_leaves_them_to_the_next(manager: ServiceManager, one: Hosts) -> None:
    """It waits for the lock file and is killed: nothing was taken out of the store, nothing read."""
    host = one[0]
    with NbdClient(host.socket) as client:
        assert host.terminate() == 0
        stored = list(manager.stored)
        with open(host.directory / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = host.log.read_text().count("waiting_for_lock_file")
            start(manager, host)
            wait_for(lambda: host.log.read_text().count("waiting_for_lock_file") > lines, "it waits")
            assert host.process is not None
            host.process.kill()
            host.wait_exit()
        assert manager.stored == stored
        number = client.send(0, 0, 512)
        start(manager, host)
        host.wait_active()
        assert client.answer(number).error == 0


def test_a_manager_that_confirms_nothing(manager: ServiceManager, one: Hosts) -> None:
    """It cannot be told to forget what it has, and may give it away once more: the clients are disconnected, for
    whoever has their connections, and newcomers are served."""
    host = one[0]
    with NbdClient(host.socket) as client:
        assert host.terminate() == 0
        manager.stop_reading()
        start(manager, host)
        client.sock.settimeout(FORGET_LIMIT + 10)
        assert client.gone()
        host.wait_active()
        assert "not_taken_over" in host.tail()
        for fd in manager.stored:
            os.fstat(fd)
    with NbdClient(host.socket) as client:
        assert client.write(0, b"n" * 512) == 0
