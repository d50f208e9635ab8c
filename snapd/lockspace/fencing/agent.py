"""Fencing by a program of the fence-agents family (fence_ipmilan, fence_vmware_rest, ...).

The agent reads key=value lines on its standard input: all of [fencing.options], those of [fencing.hosts.<node>]
(which win), ``action`` (default "off") and ``nodename``; exit code 0 says that the host is off. A node without an
entry of its own is tried with the options alone. Anything else but 0, or no end within the timeout, is a failure, and
the next attempt follows after a pause: for ever, loudly, since nobody may take the dead member's locks before.

Each fencing runs in a thread of its own, because an agent takes minutes. Starting a program from a process that
uses gRPC is safe this way: subprocess (without preexec_fn) goes through vfork and exec in C, so no handler of
a fork runs, and nothing of Python or gRPC does in the child. Options never appear in arguments, in the environment
or in the log; what the agent prints is logged with their values taken out.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from snapd.errors import CsnapError
from snapd.lockspace.ports import ERROR, NOTICE, Effects
from snapd.lockspace.records import MemberRecord

PAUSE_FIRST, PAUSE_MOST = 1, 30  # seconds between attempts: a management board may need a minute to come back
SAID_MOST = 300
"""Characters of an agent's output in the log, from its end."""

SECRET_LEAST = 3
"""Characters: taking shorter values out would hide nothing and garble everything."""

Post = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """``timeout`` in seconds. ``options`` and ``hosts`` may hold secrets."""

    agent: str
    timeout: float
    options: Mapping[str, str] = field(repr=False)
    hosts: Mapping[str, Mapping[str, str]] = field(repr=False)

    def lines(self, node: str) -> dict[str, str]:
        """What the agent is to read for ``node``."""
        return {"action": "off", **self.options, **self.hosts.get(node, {}), "nodename": node}


class AgentFailed(CsnapError):
    """One attempt failed; the text holds no secrets. ``code``: what the agent exited with, -1 if it did not."""

    def __init__(self, text: str, code: int = -1) -> None:
        super().__init__(text)
        self.code = code


class Agent:
    """``post`` hands a call to the owner's thread, where ``effects`` and every ``done`` are called."""

    method = "agent"

    def __init__(
        self,
        settings: AgentSettings,
        effects: Effects,
        post: Post,
        pauses: tuple[float, float] = (PAUSE_FIRST, PAUSE_MOST),
    ) -> None:
        self._settings, self._effects, self._post = settings, effects, post
        self._pauses = pauses
        self._waiting: dict[str, list[Callable[[], None]]] = {}  # by incarnation
        self._fenced: set[str] = set()
        self._closed = threading.Event()

    def configure(self, settings: AgentSettings) -> None:
        """From the next attempt on; one that runs is left to end."""
        self._settings = settings

    def fence(self, record: MemberRecord, done: Callable[[], None]) -> None:
        """Idempotent: an incarnation that is off already is not switched off again: its successor may be up."""
        if record.incarnation in self._fenced:
            done()
        elif record.incarnation in self._waiting:
            self._waiting[record.incarnation].append(done)
        else:
            self._waiting[record.incarnation] = [done]
            name = f"fence-{record.node}"
            threading.Thread(target=self._run, args=(record.node, record.incarnation), name=name, daemon=True).start()

    def forget(self, record: MemberRecord) -> None:
        """The attempt that runs is left to end; it is the last one."""
        self._waiting.pop(record.incarnation, None)

    def left(self, record: MemberRecord) -> None: ...

    def close(self) -> None:
        """Try no more. An agent that runs is left to end: what it does is wanted all the same."""
        self._closed.set()

    def _run(self, node: str, incarnation: str) -> None:
        """In the fencing's own thread."""
        first, most = self._pauses
        retrying = Retrying(
            retry=retry_if_exception_type(AgentFailed),
            wait=wait_exponential(multiplier=first, max=most),
            stop=lambda state: self._closed.is_set() or incarnation not in self._waiting,
            sleep=self._pause,
            before_sleep=lambda state: self._failed(node, state),
            reraise=True,
        )
        try:
            retrying(lambda: run_agent(self._settings, node))
        except AgentFailed:
            return  # closed, or forgotten
        self._tell(lambda: self._done(node, incarnation))

    def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def _failed(self, node: str, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        attempt = state.attempt_number

        def told() -> None:
            self._effects.log(ERROR, "fence_failed", {"target": node, "attempt": attempt, "error": str(error)})
            self._effects.observe("fence_events_total", {"target": node, "method": self.method, "result": "failed"}, 1)

        self._tell(told)

    def _done(self, node: str, incarnation: str) -> None:
        self._effects.log(NOTICE, "fence_agent_done", {"target": node})
        self._fenced.add(incarnation)
        for done in self._waiting.pop(incarnation, ()):
            done()

    def _tell(self, action: Callable[[], None]) -> None:
        try:
            self._post(lambda: None if self._closed.is_set() else action())
        except RuntimeError:  # the owner's loop is closed
            return


def run_agent(settings: AgentSettings, node: str) -> None:
    """Run the agent once; return when it has ended with 0. Raises AgentFailed."""
    lines = settings.lines(node)
    try:
        process = subprocess.Popen(
            [settings.agent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the timeout ends what the agent has started, too
        )
    except OSError as error:
        raise AgentFailed(f"{settings.agent}: cannot be started: {error.strerror}") from None
    with process:
        try:
            text = "".join(f"{key}={value}\n" for key, value in lines.items())
            output, _ = process.communicate(text.encode(), settings.timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise AgentFailed(f"{settings.agent}: no end within {settings.timeout} s") from None
    if process.returncode:
        said = without_secrets(output.decode(errors="replace"), lines)
        raise AgentFailed(f"{settings.agent}: exit code {process.returncode}: {said}", process.returncode)


def without_secrets(text: str, lines: Mapping[str, str]) -> str:
    """Return the end of what an agent said on one line, every option's value taken out but the node's name."""
    for key, value in sorted(lines.items(), key=lambda line: -len(line[1])):
        if key not in ("nodename", "action") and len(value) >= SECRET_LEAST:
            text = text.replace(value, f"<{key}>")
    text = " ".join(text.split())
    return text if len(text) <= SAID_MOST else "..." + text[-SAID_MOST:]
