"""A changed configuration file in a daemon that runs: ``csnap reload``, ``systemctl reload``, SIGHUP.

    1. the file is read and checked whole, in a thread     refused: nothing changes, ``reload_refused``
    2. sections are compared with what is in force
    3. a section of which only LIVE keys have changed is applied; of the others it is said that they need a restart

A section changes as a whole or not at all: what is in force was checked together, and fencing in particular is never
made of two files. What needs a restart stays said, in ``csnap status`` and in systemd's status line, until the restart
or until the file says again what is in force.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from snapd import config as configuration
from snapd.config import Config
from snapd.daemon.admin import Reply
from snapd.daemon.background import in_thread
from snapd.daemon.log import Log
from snapd.daemon.loop import Loop
from snapd.errors import CsnapError
from snapd.lockspace.fencing.agent import Agent
from snapd.lockspace.fencing.factory import agent_settings
from snapd.lockspace.ports import NOTICE, WARNING, Limits

LIVE: dict[str, frozenset[str]] = {
    "lockspace": frozenset({"freeze_limit"}),  # looked at when a command begins
    "fencing": frozenset({"agent", "timeout", "options", "hosts"}),  # looked at before each attempt
}
"""What may change while the daemon runs. Nothing else: sizes, names and devices are what others rely on; a lease keeps
the TTL that it was granted with; connections keep their certificates."""

ELSEWHERE = frozenset({"attach"})
"""Sections that the daemon does not use: whoever does reads the file anew each time."""


KEYS = {"host": "listen", "port": "listen", "unix": "listen"}
"""Fields that have another name in the file."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``config``: what is in force from now on. Keys are written ``[section] key``."""

    config: Config
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]

    def shown(self) -> dict[str, object]:
        """For the log: what there is to say."""
        said = {"applied": ", ".join(self.applied), "needs_restart": ", ".join(self.needs_restart)}
        return {key: text for key, text in said.items() if text}


def plan(old: Config, new: Config) -> Plan:
    """What becomes of ``old``, in force, now that the file says ``new``."""
    config = old
    applied: list[str] = []
    needs_restart: list[str] = []
    for section in (field.name for field in fields(Config) if field.name != "path"):
        before, after = getattr(old, section), getattr(new, section)
        changed = [key.name for key in fields(before) if getattr(before, key.name) != getattr(after, key.name)]
        names = list(dict.fromkeys(f"[{section}] {KEYS.get(name, name)}" for name in changed))
        if section in ELSEWHERE or LIVE.get(section, frozenset()).issuperset(changed):
            config = replace(config, **{section: after})
            applied += names
        else:
            needs_restart += names
    return Plan(config, tuple(applied), tuple(needs_restart))


class Told(Protocol):
    """Who shows what a reload came to: the status."""

    needs_restart: tuple[str, ...]
    reload_error: str


class Service(Protocol):
    """systemd, as far as it wants to know of a reload."""

    def reloading(self) -> None: ...

    def reloaded(self) -> None: ...


class Reloading:
    """``config`` is what is in force. ``agent`` is set once there is one, if the method has one."""

    def __init__(self, config: Config, loop: Loop, log: Log, told: Told, service: Service) -> None:
        self.config = config
        self.limits = Limits(config.lockspace.freeze_limit)
        self.agent: Agent | None = None
        self._loop, self._log, self._told, self._service = loop, log, told, service
        self._asked: deque[Reply | None] = deque()

    def signalled(self) -> None:
        """SIGHUP: the log and the status tell what came of it."""
        self._ask(None)

    def command(self, request: dict[str, Any], reply: Reply) -> None:
        """``csnap reload``."""
        reply.progress(f"reading {self.config.path}")
        self._ask(reply)

    def _ask(self, reply: Reply | None) -> None:
        """One after the other: of two files read, the later one counts."""
        self._asked.append(reply)
        if len(self._asked) == 1:
            self._next()

    def _next(self) -> None:
        self._service.reloading()
        in_thread(self._loop, lambda: configuration.load(self.config.path), self._loaded)

    def _loaded(self, outcome: Config | CsnapError) -> None:
        reply = self._asked[0]
        if isinstance(outcome, CsnapError):
            self._told.reload_error = str(outcome)
            self._log(WARNING, "reload_refused", {"error": outcome})
            if reply is not None:
                reply.error(outcome)
        else:
            self._apply(plan(self.config, outcome), reply)
        self._service.reloaded()
        self._asked.popleft()
        if self._asked:
            self._next()

    def _apply(self, planned: Plan, reply: Reply | None) -> None:
        self.config = planned.config
        self.limits.freeze = planned.config.lockspace.freeze_limit
        if self.agent is not None:
            self.agent.configure(agent_settings(planned.config.fencing))
        self._told.needs_restart, self._told.reload_error = planned.needs_restart, ""
        self._log(WARNING if planned.needs_restart else NOTICE, "reloaded", planned.shown())
        if reply is not None:
            reply.result({"applied": list(planned.applied), "needs_restart": list(planned.needs_restart)})
