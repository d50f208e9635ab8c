"""The command line: words, exit codes, one-line errors, and what people read."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snapd import __version__
from snapd.cli import commands, text
from snapd.cli.main import main, make_parser
from snapd.errors import Fenced
from snapd.format.header import Header
from snapd.units import MIB
from tests.unit.test_config import GOOD

STATUS: dict[str, Any] = {
    "volume": "vmstore",
    "node": "host-a",
    "member": {
        "state": "active",
        "why": "",
        "lease_remaining_seconds": 8.1,
        "lease_ttl_seconds": 10,
        "fencing": "unsafe",
    },
    "snapshots": [
        {
            "name": "s1",
            "state": "active",
            "dm_status": "1664/16384 256",
            "percent_full": 10.2,
            "exceptions": 51,
            "writable": False,
            "cow": "/dev/cow",
            "store": "x",
        }
    ],
    "fencing": {
        "method": "unsafe",
        "helper": "",
        "waiting": [{"node": "host-b", "by": "host-a", "since_seconds": 90.0}],
    },
    "members": [
        {
            "node": "host-b",
            "state": "fencing",
            "by": "host-a",
            "version": "0.1.0",
            "protocols": [1, 1],
            "started": None,
        }
    ],
    "io": {"connections": 1, "inflight": 0, "waiting": 0, "direct": True},
    "metrics": "127.0.0.1:9942",
    "protocol": {"in_force": 1, "oldest": 1, "newest": 2, "spoken_by_all": 1},
    "reload": {"needs_restart": ["[lockspace] lease_ttl"], "error": ""},
    "warnings": ["page cache used"],
    "version": "0.1.0",
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "vmstore.toml"
    path.write_text(GOOD.replace("/run/csnap/vmstore", str(tmp_path)))
    return str(path)


class Daemon:
    """Plays the daemon's end of ``ask``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer: Any = STATUS

    def ask(self, path: str, request: dict[str, Any], progress: object = None) -> Any:
        self.asked.append((path, request))
        return self.answer


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    played = Daemon()
    monkeypatch.setattr(commands, "ask", played.ask)
    return played


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command that must not succeed; return its code and its one line of error."""
    try:
        code = main(words)
    except SystemExit as end:
        code = int(str(end.code))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return code, captured.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nonsense",),
        ("status",),
        ("snapshot", "create", "vmstore", "s1"),
        ("dump", "/dev/null"),
        ("status", "vmstore", "--nonsense"),
        ("completion", "fish"),
    ],
)
def test_usage_errors_are_one_line_and_2(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    """No usage text of many lines; where help is to be had is said."""
    code, line = failed(capsys, *words)
    assert code == 2
    assert "--help" in line


def test_refusals_are_1(capsys: pytest.CaptureFixture[str]) -> None:
    """One line naming the file."""
    assert failed(capsys, "status", "/nowhere/x.toml") == (1, "csnap: /nowhere/x.toml: no such file\n")


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("locks",),
        ("trace",),
        ("snapshot", "list"),
        ("snapshot", "delete", "s1"),
        ("snapshot", "create", "s1"),
    ],
)
def test_no_daemon_is_3(capsys: pytest.CaptureFixture[str], config: str, words: tuple[str, ...]) -> None:
    """For every command that asks it."""
    verb = 2 if words[0] == "snapshot" else 1
    extra = ("--cow", "/dev/cow") if "create" in words else ()
    code, line = failed(capsys, *words[:verb], config, *words[verb:], *extra)
    assert code == 3
    assert "no daemon answers" in line


def test_fenced_is_4(capsys: pytest.CaptureFixture[str], config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``serve`` that was recovered by others."""

    def serve(config: object, log: object) -> None:
        raise Fenced("m/host-a: recovered by host-b")

    monkeypatch.setattr("snapd.daemon.serve.serve", serve)
    assert failed(capsys, "serve", config) == (4, "csnap: m/host-a: recovered by host-b\n")


def test_status_for_people(capsys: pytest.CaptureFixture[str], config: str, daemon: Daemon) -> None:
    """State, lease, fencing in so many words, members, warnings, snapshots with the kernel's words."""
    assert main(["status", config]) == 0
    shown = capsys.readouterr().out
    for words in (
        "state    active\n",
        "lease    8.1 s left of 10 s",
        "unsafe: it fences nobody",
        "host-b fencing (by host-a)",
        "waiting for fencing of host-b since 90.0 s, by host-a",
        "protocol 1 in force; no newer one is spoken by host-b\n",
        "restart  needed for [lockspace] lease_ttl",
        "warning  page cache used",
        "s1        active  1664/16384 256  10.2%  read-only  /dev/cow",
    ):
        assert words in shown


def test_a_protocol_that_everybody_speaks_is_offered(
    capsys: pytest.CaptureFixture[str], config: str, daemon: Daemon
) -> None:
    """`status` names the command; once it is in force, it says nothing of it; the command says what was and is."""
    daemon.answer = {**STATUS, "protocol": {"in_force": 1, "oldest": 1, "newest": 2, "spoken_by_all": 2}}
    assert main(["status", config]) == 0
    assert "protocol 1 in force; all members speak a newer one: csnap volume upgrade vmstore" in capsys.readouterr().out
    daemon.answer = {**STATUS, "protocol": {"in_force": 2, "oldest": 1, "newest": 2, "spoken_by_all": 2}}
    assert main(["status", config]) == 0
    assert "protocol" not in capsys.readouterr().out
    daemon.answer = {"protocol": 2, "was": 1}
    assert main(["volume", "upgrade", config]) == 0
    daemon.answer = {"protocol": 2, "was": 2}
    assert main(["volume", "upgrade", config]) == 0
    assert capsys.readouterr().out == "protocol 2 is in force, it was 1\nprotocol 2 is in force already\n"


def test_reload_tells_what_is_in_force_and_what_is_not(
    capsys: pytest.CaptureFixture[str], config: str, daemon: Daemon
) -> None:
    """0 if all is in force, 5 if something needs a restart: which, on standard error; --json has both lists."""
    daemon.answer = {"applied": ["[lockspace] freeze_limit"], "needs_restart": []}
    assert main(["reload", config]) == 0
    assert capsys.readouterr() == ("in force: [lockspace] freeze_limit\n", "")
    daemon.answer = {"applied": [], "needs_restart": ["[node] name"]}
    assert main(["reload", config, "--json"]) == 5
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (daemon.answer, "csnap: needs a restart: [node] name\n")
    daemon.answer = {"applied": [], "needs_restart": []}
    assert main(["reload", config]) == 0
    assert capsys.readouterr().out == "in force: nothing has changed\n"


def test_status_of_a_daemon_of_0_1(capsys: pytest.CaptureFixture[str], config: str, daemon: Daemon) -> None:
    """It says less, and the command of 0.2 shows what it says: between the switch of versions and the restart."""
    daemon.answer = {key: value for key, value in STATUS.items() if key not in ("protocol", "reload")}
    daemon.answer["members"] = [{"node": "host-a", "state": "active", "by": ""}]
    assert main(["status", config]) == 0
    assert "members  host-a active" in capsys.readouterr().out


def test_status_for_programs(capsys: pytest.CaptureFixture[str], config: str, daemon: Daemon) -> None:
    """The daemon's JSON as it is."""
    assert main(["status", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS
    assert daemon.asked == [(str(Path(config).parent / "admin.sock"), {"command": "status"})]


def test_snapshot_list(capsys: pytest.CaptureFixture[str], config: str, daemon: Daemon) -> None:
    """The same rows as status; a sentence when there are none."""
    assert main(["snapshot", "list", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS["snapshots"]
    daemon.answer = {**STATUS, "snapshots": []}
    assert main(["snapshot", "list", config]) == 0
    assert capsys.readouterr().out == "no snapshots\n"


def test_snapshot_create_makes_the_path_absolute(
    capsys: pytest.CaptureFixture[str], config: str, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon has another working directory; symbolic links stay, since names by-id are what hosts share."""
    monkeypatch.chdir(tmp_path)
    os.symlink("/dev/null", "link")  # noqa: PTH211
    daemon.answer = {"name": "s1"}
    assert main(["snapshot", "create", config, "s1", "--cow", "link", "--writable"]) == 0
    assert daemon.asked[0][1] == {
        "command": "snapshot-create",
        "name": "s1",
        "cow": str(tmp_path / "link"),
        "writable": True,
        "force": False,
    }
    assert capsys.readouterr().out == "s1: taken\n"


def test_ages() -> None:
    """Seconds, minutes, hours."""
    assert [text.age(seconds) for seconds in (0.04, 119, 121, 7200)] == ["0.0 s", "119.0 s", "2 min", "2.0 h"]


@pytest.fixture
def cow(tmp_path: Path) -> str:
    path = tmp_path / "cow"
    with open(path, "wb") as file:
        file.truncate(4 * MIB)
        file.write(Header(True, 32).to_bytes())
    return str(path)


def test_check_tells_sound_problems_and_unreadable_apart(
    capsys: pytest.CaptureFixture[str], cow: str, tmp_path: Path
) -> None:
    """0, 1 with each problem named, 2 for what cannot be read."""
    assert main(["check", cow]) == 0
    assert "sound" in capsys.readouterr().out
    with open(cow, "r+b") as file:
        file.seek(16384)
        file.write((1).to_bytes(8, "little") + (1).to_bytes(8, "little"))  # a chunk on the metadata area
    assert main(["check", cow, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"]
    assert main(["check", str(tmp_path / "absent")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_dump_is_json(capsys: pytest.CaptureFixture[str], cow: str) -> None:
    """Exactly the documented keys."""
    assert main(["dump", cow, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert set(value) >= {"valid", "version", "chunk_size", "next_free", "status", "exceptions"}
    assert (value["valid"], value["chunk_size"], value["exceptions"]) == (True, 32, [])


def test_config_check(capsys: pytest.CaptureFixture[str], config: str) -> None:
    """Good is said; an unknown store type is named with file and key."""
    assert main(["config", "check", config]) == 0
    assert capsys.readouterr().out == f"{config}: good\n"
    Path(config).write_text(Path(config).read_text().replace("clusterized_persistent", "clusterized_transient"))
    code, line = failed(capsys, "config", "check", config)
    assert code == 1
    assert f"{config}: [volume] type:" in line and "clusterized_transient" in line


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """What a person types next."""
    for words in (
        "volume init", "serve", "snapshot create", "snapshot delete", "snapshot list", "status", "top", "doctor",
        "locks", "trace", "check", "dump", "config check", "version",
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main([*words.split(), "--help"])
        assert end.value.code == 0
        assert f"example: csnap {words}" in capsys.readouterr().out


def test_every_command_that_tells_something_tells_it_in_json() -> None:
    """But serve, whose log is the journal's, what undoes an attachment, and completion, which is a script already."""
    without = []

    def walk(parser: argparse.ArgumentParser, path: str) -> None:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for group in groups:
            for name, child in group.choices.items():
                walk(child, f"{path} {name}".strip())
        if not groups and "--json" not in parser.format_help():
            without.append(path)

    walk(make_parser(), "")
    assert without == ["serve", "detach", "completion"]


def test_answers_of_commands_in_json(capsys: pytest.CaptureFixture[str], config: str, daemon: Daemon) -> None:
    """One object each, nothing beside it on standard output."""
    daemon.answer = {"name": "s1", "store": "x"}
    for words, expected in (
        (["snapshot", "create", config, "s1", "--cow", "/dev/x", "--json"], daemon.answer),
        (["snapshot", "delete", config, "s1", "--json"], daemon.answer),
        (["config", "check", config, "--json"], {"path": config, "volume": "vmstore"}),
        (["version", "--json"], {"version": __version__}),
    ):
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out) == expected


def test_grpc_is_loaded_by_serve_and_init_alone() -> None:
    """Importing the whole command line, and the daemon's modules, does not load it; nor does it load the metrics."""
    program = (
        "import sys, snapd.cli.main, snapd.cli.client; assert 'prometheus_client' not in sys.modules;"
        "import snapd.daemon.serve; assert 'grpc' not in sys.modules and 'etcd3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_completion_is_a_script_that_bash_takes(tmp_path: Path) -> None:
    """Sourced by a real bash it completes commands, options and volumes, and leaves files to bash."""
    from snapd.cli.completion import bash

    for name in ("vmstore.toml", "archive.toml", "notes.txt"):
        (tmp_path / name).touch()

    def completed(*typed: str) -> list[str]:
        words = " ".join(f"'{word}'" for word in ("csnap", *typed))
        script = bash(make_parser()).replace("/etc/csnap", str(tmp_path))
        script += f'COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _csnap; echo "${{COMPREPLY[*]}}"\n'
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()

    assert completed("st") == ["status"]
    assert completed("snapshot", "") == ["create", "delete", "list"]
    assert {"--cow", "--writable", "--force"} <= set(completed("snapshot", "create", "--"))
    assert completed("locks", "--a") == completed("locks", "vmstore", "--a") == ["--all"]
    assert {"--once", "--slowest"} <= set(completed("trace", "vmstore", "--"))
    assert completed("snapshot", "create", "") == completed("doctor", "") == ["archive", "vmstore"]
    assert completed("snapshot", "create", "vmstore", "") == completed("check", "") == []
    assert completed("completion", "") == ["bash"]
