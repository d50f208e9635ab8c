"""systemd's store of descriptors, as the daemon speaks to it: against a service manager that is played."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from snapd.daemon import fdstore
from snapd.daemon.fdstore import FdStore, find_store, inherited, shut_down
from tests.support.service_manager import ServiceManager


@pytest.fixture
def manager() -> Iterator[ServiceManager]:
    with ServiceManager() as made:
        yield made


def test_what_is_kept_is_there_and_forgotten_when_told(manager: ServiceManager) -> None:
    """More than fit into one message, in order; each call returns after the manager has dealt with all of it."""
    store = FdStore(manager.address)
    pipes = [os.pipe() for _ in range(130)]
    ends = [fd for pair in pipes for fd in pair]
    try:
        assert store.keep(ends, 5.0)
        assert [os.fstat(fd).st_ino for fd in manager.stored] == [os.fstat(fd).st_ino for fd in ends]
        assert manager.messages == ["FDSTORE=1\nFDNAME=csnap"] * 2 + ["BARRIER=1"]
        assert store.forget()
        assert manager.stored == [] and manager.messages[-2:] == ["FDSTOREREMOVE=1\nFDNAME=csnap", "BARRIER=1"]
    finally:
        for fd in ends:
            os.close(fd)


def test_a_manager_that_does_not_read_is_not_waited_for_longer_than_the_limit(
    manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No confirmation: False, in time. The same where nobody listens."""
    monkeypatch.setattr(fdstore, "FORGET_LIMIT", 0.1)
    manager.stop_reading()
    assert not FdStore(manager.address).forget()
    assert not FdStore("/nonexistent/notify").forget()


def test_without_systemd_there_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOTIFY_SOCKET decides; an abstract address is one as well."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert find_store() is None
    monkeypatch.setenv("NOTIFY_SOCKET", "@csnap-test-nobody")
    store = find_store()
    assert store is not None and not store.forget()


def test_only_what_is_meant_for_this_process_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """LISTEN_PID of another process, or no sensible number: nothing. The variables are gone afterwards."""
    monkeypatch.setattr(fdstore, "FIRST", 1 << 20)
    for pid, count in ((str(os.getpid() + 1), "2"), ("", "2"), (str(os.getpid()), "-1"), (str(os.getpid()), "")):
        environment = {"LISTEN_PID": pid, "LISTEN_FDS": count, "LISTEN_FDNAMES": "a:b", "OTHER": "x"}
        assert inherited(environment) == []
        assert environment == {"OTHER": "x"}


def test_inherited_descriptors_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come without close-on-exec, and have it afterwards: a helper that is started must not keep clients."""
    first, second = os.pipe()
    try:
        monkeypatch.setattr(fdstore, "FIRST", first)
        os.set_inheritable(first, True)
        assert inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}) == [first]
        assert not os.get_inheritable(first)
    finally:
        os.close(first)
        os.close(second)


def test_shutting_down_ends_it_for_everybody() -> None:
    """A connection that another process has too is at its end; what is no socket is closed."""
    ours, theirs = socket.socketpair()
    kept = ours.dup()
    memory = os.memfd_create("x")
    shut_down([ours.detach(), memory])
    assert theirs.recv(1) == b"" and kept.recv(1) == b""
    with pytest.raises(OSError):
        os.fstat(memory)
    theirs.close()
    kept.close()
