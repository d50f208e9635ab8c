"""The configured method of fencing."""

from __future__ import annotations

from collections.abc import Callable

from snapd.config import FencingConfig
from snapd.lockspace.fencing.agent import Agent, AgentSettings, Post
from snapd.lockspace.fencing.base import Fencer
from snapd.lockspace.fencing.scsi_pr import Preempter, ScsiPr
from snapd.lockspace.fencing.unsafe import Unsafe
from snapd.lockspace.fencing.watchdog import Watchdog
from snapd.lockspace.ports import Effects, Timers


def make_fencer(
    config: FencingConfig,
    effects: Effects,
    post: Post,
    timers: Timers,
    granted: Callable[[], int],
    preempter: Preempter,
) -> Fencer:
    """``config`` was checked: the method is a known one. ``granted``: the TTL in nanoseconds."""
    match config.method:
        case "agent":
            return Agent(agent_settings(config), effects, post)
        case "scsi-pr":
            return ScsiPr(preempter, timers, effects)
        case "watchdog":
            return Watchdog(granted, timers, effects)
        case _:
            return Unsafe(effects)


def agent_settings(config: FencingConfig) -> AgentSettings:
    return AgentSettings(config.agent, config.timeout, config.options, config.hosts)
