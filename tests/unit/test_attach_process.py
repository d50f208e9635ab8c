"""The attach program as a process: what becomes of signals over the exec of a reload, and of a second program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapd.attach.sole import claim
from snapd.errors import Refused

LIMIT = 60  # seconds
INDEX = os.getpid()  # of a device that no other test has

PROGRAM = """#!{python}
import os, signal, sys
sys.path.insert(0, {project!r})
from snapd.attach.sole import claim
from snapd.attach.waiting import Reload, Stop, Waiter
from snapd.clock import boottime
from snapd.cli import attaching
from snapd.units import SECOND

def stop_now(path, arguments, execv=os.execv):
    os.kill(os.getpid(), signal.SIGTERM)
    execv(path, arguments)

before, os.environ["RUNS"] = int(os.environ.get("RUNS", 0)), str(int(os.environ.get("RUNS", 0)) + 1)
with Waiter() as waiter:
    print("runs", before, "claimed" if claim({index}, "/dev/nbd") >= 0 else "inherited", flush=True)
    try:
        try:
            waiter.wait(boottime() + {limit} * SECOND)
        except Reload:
            if {when!r} == "before":
                os.kill(os.getpid(), signal.SIGTERM)
            if {when!r} == "between" and before:
                os.execv = stop_now
            waiter.hold()
            attaching._again("vol")
    except Stop:
        print("stopped", before, flush=True)
"""


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> subprocess.Popen[str]:
    """A stand-in, called csnap, that reloads itself as ``csnap attach`` does, without a kernel's client."""
    path = tmp_path / "csnap"
    project = str(Path(__file__).parents[2])
    when = getattr(request, "param", "")
    path.write_text(PROGRAM.format(python=sys.executable, project=project, index=INDEX, limit=LIMIT, when=when))
    path.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "RUNS"}
    process = subprocess.Popen([str(path)], stdout=subprocess.PIPE, text=True, env=environment)

    def end() -> None:
        process.kill()
        process.communicate()

    request.addfinalizer(end)
    assert said(process) == "runs 0 claimed"
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("program", ["between"], indirect=True)
def test_a_stop_during_the_exec_reaches_the_next_program(program: subprocess.Popen[str]) -> None:
    """SIGTERM behind the last look at signals and before execv, in the second of three programs: the third one stops
    by it, as soon as it has its handlers."""
    program.send_signal(signal.SIGHUP)
    assert said(program) == "runs 1 inherited"
    program.send_signal(signal.SIGHUP)
    assert said(program) == "runs 2 inherited"
    assert said(program) == "stopped 2"
    assert program.wait(LIMIT) == 0


@pytest.mark.parametrize("program", ["before"], indirect=True)
def test_a_stop_behind_a_reload_goes_first(program: subprocess.Popen[str]) -> None:
    """SIGTERM that was noted while the reload was on its way: nothing is executed any more."""
    program.send_signal(signal.SIGHUP)
    assert said(program) == "stopped 0"
    assert program.wait(LIMIT) == 0


def test_a_second_program_is_refused_by_name_until_the_first_has_ended(program: subprocess.Popen[str]) -> None:
    """Also behind a reload, in which no moment is free; one that is killed leaves nothing behind."""
    for run in ("runs 1 inherited", "runs 2 inherited"):
        with pytest.raises(Refused, match=f"/dev/nbd: another `csnap attach` .* process {program.pid}:"):
            claim(INDEX, "/dev/nbd")
        program.send_signal(signal.SIGHUP)
        assert said(program) == run
    with pytest.raises(Refused, match=f"process {program.pid}:"):
        claim(INDEX, "/dev/nbd")
    program.kill()
    program.wait(LIMIT)
    descriptor = claim(INDEX, "/dev/nbd")
    assert descriptor >= 0
    os.close(descriptor)


def test_a_name_that_a_stranger_has_does_not_keep_it_from_attaching(
    program: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may take the name; what is neither root's nor our own user's is no attach program."""
    monkeypatch.setattr("snapd.attach.sole._TRUSTED", frozenset())
    assert claim(INDEX, "/dev/nbd") == -1
