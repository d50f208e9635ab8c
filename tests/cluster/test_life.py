"""The life of ``csnap serve``: its directory, its sockets, its lock file."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from demo.host import run_csnap
from demo.ports import free_ports
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.traffic import read_export


@pytest.fixture
def one() -> Iterator[Hosts]:
    """A cluster of one host, initialized, not started."""
    with Hosts(1) as cluster:
        cluster[0].csnap("volume", "init", "CONFIG")
        yield cluster


def ended(daemon: Daemon) -> str:
    """Wait for a daemon that must refuse; return what it said."""
    assert daemon.wait_exit() == 1
    return daemon.tail()


def test_a_dead_socket_is_replaced(one: Hosts) -> None:
    """Socket files that nobody listens on are in nobody's way."""
    for name in ("nbd.sock", "admin.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(one[0].directory / name))
    one[0].start()
    one[0].wait_active()
    assert not any(read_export(one[0], "origin"))


def test_a_live_socket_is_refused(one: Hosts) -> None:
    """A socket that somebody else listens on is not taken away: the daemon refuses, naming it."""
    path = one[0].socket
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        one[0].start()
        assert "nbd.sock" in ended(one[0])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_the_lock_file_is_waited_for(one: Hosts) -> None:
    """A second daemon with the same directory waits, saying for what; it serves when the first one has gone."""
    first = one[0]
    first.start()
    first.wait_active()
    second = Daemon(first.name, first.directory, first.volume, free_ports(1)[0])
    log = first.log.read_text().count("\n")
    second.start()
    try:
        wait_for(lambda: "lock" in "\n".join(first.log.read_text().splitlines()[log:]), "it says what it waits for")
        assert first.state() == "active"
        assert first.terminate() == 0
        second.wait_active()
        assert second.terminate() == 0
    finally:
        second.destroy()


def test_no_daemon(one: Hosts) -> None:
    """Commands that need a daemon end with 3, in one line, when none answers."""
    for words in (("status",), ("locks",), ("snapshot", "list")):
        answer = run_csnap(*words, one[0].config)
        assert answer.returncode == 3
        assert len(answer.stderr.splitlines()) == 1


def test_an_uninitialized_volume_is_refused() -> None:
    """``serve`` before ``volume init`` says what to do; a second init is fine, one with another geometry is not."""
    with Hosts(1) as cluster:
        cluster[0].start()
        assert "volume init" in ended(cluster[0])
        cluster[0].csnap("volume", "init", "CONFIG")
        cluster[0].csnap("volume", "init", "CONFIG")
        other = cluster[0].config.with_name("other.toml")
        other.write_text(cluster[0].config.read_text().replace('"16KiB"', '"32KiB"'))
        assert run_csnap("volume", "init", other).returncode == 1


def test_a_path_too_long_for_a_socket(one: Hosts) -> None:
    """A directory whose sockets would have more than 107 bytes in their names is refused by name."""
    config = one[0].config.with_name("long.toml")
    directory = one.directory / ("d" * 100)
    config.write_text(one[0].config.read_text().replace(f'"{one[0].directory}"', f'"{directory}"'))
    answer = run_csnap("serve", config)
    assert answer.returncode in (1, 2)
    assert "107" in answer.stderr
