"""The configured method of fencing."""

from __future__ import annotations

from snapd.config import FencingConfig
from snapd.lockspace.fencing.agent import Agent, AgentSettings, Post
from snapd.lockspace.fencing.base import Fencer
from snapd.lockspace.fencing.unsafe import Unsafe
from snapd.lockspace.ports import Effects


def make_fencer(config: FencingConfig, effects: Effects, post: Post) -> Fencer:
    """``config`` was checked: the method is a known one."""
    if config.method == "agent":
        return Agent(AgentSettings(config.agent, config.timeout, config.options, config.hosts), effects, post)
    return Unsafe(effects)
