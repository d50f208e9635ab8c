"""``csnap top`` in a real terminal, against two daemons under load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from demo.host import csnap, environment
from demo.stage import children
from snapd.cli.client import ask
from snapd.cli.top.observation import parse
from tests.support.daemons import Hosts
from tests.support.etcd_server import wait_for
from tests.support.tmux import Terminal

FAST = "--interval 0.3"


def command(cluster: Hosts, *words: str) -> str:
    return " ".join([*csnap(), "top", str(cluster[0].config), *words])


def left_sane(terminal: Terminal, settings: str) -> None:
    """The shell has its screen, its cursor and its line discipline back."""
    wait_for(lambda: terminal.flag("alternate_on") == "0", "the other screen is left")
    assert terminal.flag("cursor_flag") == "1"
    terminal.type("clear")
    terminal.wait(settings, gone=True)
    terminal.type("stty -g")
    assert settings in terminal.wait(settings)
    terminal.type("echo typed-$((40+2))")
    assert "echo typed-" in terminal.wait("typed-42")  # echo is on again


def settings_of(terminal: Terminal) -> str:
    """The first line of what ``stty -g`` says: flags and control characters."""
    terminal.type("stty -g")
    pattern = re.compile(r"^[0-9a-f]+(:[0-9a-f]+){18,}", re.MULTILINE)
    wait_for(lambda: pattern.search(terminal.screen()) is not None, "stty has answered")
    found = pattern.search(terminal.screen())
    assert found is not None
    return found[0]


def test_a_screen_of_80x24_shows_hosts_snapshots_and_rates(busy: Hosts) -> None:
    """In colour; larger after the window was made larger, whole again when it is small; s sorts, q ends it with 0."""
    with Terminal(80, 24, {"TERM": "xterm-256color"}) as terminal:
        settings = settings_of(terminal)
        terminal.type(command(busy, FAST) + "; echo code $?")
        terminal.wait("rates over")
        screen = terminal.screen()
        assert re.search(r"^csnap top  vol on host-a  active", screen)
        assert re.search(r"^ +host-a \* +active +\d", screen, re.MULTILINE)
        assert re.search(r"^ +host-b +active +- ", screen, re.MULTILINE)
        assert re.search(r"s1 +active +\[[#.]{12}\] +\d+\.\d%", screen)
        assert re.search(r"^ +origin +write +\d+\S* +\d", screen, re.MULTILINE)
        assert len(screen.splitlines()) <= 24 and terminal.flag("alternate_on") == "1"
        assert "\x1b[33m" in terminal.screen(colours=True)  # "unsafe" is yellow
        terminal.resize(130, 40)
        terminal.wait("SIZE")
        assert "exceptions a commit" in terminal.screen()
        terminal.resize(80, 24)
        terminal.wait("  -: see csnap top there")
        assert terminal.screen().count("csnap top  vol on") == 1
        terminal.keys("s")
        terminal.wait("sort:age")
        terminal.keys("q")
        terminal.wait("code 0")
        left_sane(terminal, settings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(busy: Hosts, number: signal.Signals) -> None:
    """Killed from elsewhere, or by control-C. With NO_COLOR there was none."""
    with Terminal(80, 24, {"TERM": "screen-256color", "NO_COLOR": "1"}) as terminal:
        settings = settings_of(terminal)
        terminal.type(command(busy, FAST))
        terminal.wait("rates over")
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal.screen(colours=True))
        if number == signal.SIGINT:
            terminal.keys("C-c")
        else:
            (shell,) = [int(terminal.flag("pane_pid"))]
            (pid,) = children(shell)
            os.kill(pid, number)
        left_sane(terminal, settings)


def test_a_dumb_terminal_gets_frames_one_below_the_other(busy: Hosts) -> None:
    """No codes; control-C ends it."""
    with Terminal(80, 24, {"TERM": "dumb"}) as terminal:
        terminal.type("TERM=dumb " + command(busy, FAST))
        terminal.wait("WAITS FOR")
        assert terminal.flag("alternate_on") == "0"
        terminal.keys("C-c")
        terminal.wait("$")


def run(cluster: Hosts, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    everything = [*csnap(), "top", str(cluster[0].config), *words]
    return subprocess.run(
        everything,
        env={**environment(), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_once_is_text_for_scripts(busy: Hosts) -> None:
    """No control code, no blank at a line's end, no line longer than 80, rates of one interval."""
    ended = run(busy, "--once", "--interval", "0.3")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert all(line.isprintable() and line == line.rstrip() and len(line) <= 80 for line in lines)
    assert "q quit" not in ended.stdout and "rates over" in lines[-1]
    wide = run(busy, "--once", "--interval", "0.3", COLUMNS="140").stdout
    assert "exceptions a commit" in wide


def test_json_is_the_model(busy: Hosts) -> None:
    """One line a frame, with --once one."""
    (line,) = run(busy, "--json", "--once", "--interval", "0.3").stdout.splitlines()
    model = json.loads(line)
    assert model["volume"] == "vol" and model["stores"][0]["percent"] > 0
    assert {host["node"] for host in model["hosts"]} == {"host-a", "host-b"}
    assert any(row["per_second"] for row in model["io"])


def test_what_the_daemon_tells_makes_sense(busy: Hosts) -> None:
    """Holds of both hosts; whoever waits for a region of the other one is named with it."""
    path = str(busy[0].directory / "admin.sock")
    seen = []

    def waiting() -> bool:
        found = parse(ask(path, {"command": "observe"}))
        seen.extend(wait for wait in found.waits if wait.resource.startswith("region/") and wait.holders)
        assert set(found.held) <= {"host-a", "host-b"} and found.held["host-a"]["table/CR"] == 1
        return bool(seen)

    wait_for(waiting, "both hosts write in the same regions")
    wait = seen[0]
    assert wait.holders[0][0] != wait.node and {wait.holders[0][0], wait.node} == {"host-a", "host-b"}


def test_it_outlives_the_daemon_and_goes_on_with_the_next_one() -> None:
    """Killed: the figures stay, with since when; started again: rates again."""
    with Hosts(1) as cluster:
        cluster.start()
        with Terminal(80, 24, {"TERM": "screen"}) as terminal:
            terminal.type(command(cluster, FAST))
            terminal.wait("rates over")
            cluster[0].kill()
            screen = terminal.wait("not answering since")
            assert "vol on host-a" in screen and "no rates yet" in screen
            cluster[0].start()
            terminal.wait("not answering", gone=True)
            terminal.wait("rates over")
            cluster[0].kill()
            terminal.wait("not answering since")
            terminal.keys("q")  # at once, whatever the daemon does
            wait_for(lambda: terminal.flag("alternate_on") == "0", "it ends")
        ended = run(cluster, "--once")
        assert ended.returncode == 3 and len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("seconds", ["0", "x", "nan"])
def test_an_interval_that_makes_no_sense_is_a_wrong_call(tmp_path: Path, seconds: str) -> None:
    """Exit code 2, one line."""
    ended = subprocess.run(
        [*csnap(), "top", "vol", "--interval", seconds], env=environment(), capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
