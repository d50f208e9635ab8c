"""The configuration of one volume on one host: a TOML file, read once, checked whole, then frozen.

    [volume]     name, cluster_uuid, origin, chunk_size; optional: region_size, type, exclusive
    [node]       optional: name (default: the host's name), machine_id
    [lockspace]  endpoints; optional: lease_ttl, freeze_limit, ca, cert, key, allow_old_etcd
    [export]     directory
    [metrics]    optional: listen
    [fencing]    method; for "agent": agent, timeout, [fencing.options], [fencing.hosts.<node>]
                 for "watchdog": device, watchdog_timeout
    [attach]     optional: device, dead_timeout

Each section is a module of its own here: its dataclass, its checks, ``read``. Every error is a ConfigError that names
file, section, key, value and what was expected. A key that nobody reads is an error too: a misspelt one would silently
mean the default. docs/configuration.md explains each key.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapd.config import attach, export, fencing, lockspace, metrics, node, volume
from snapd.config.attach import AttachConfig
from snapd.config.checks import NAME
from snapd.config.export import ExportConfig
from snapd.config.fencing import FencingConfig
from snapd.config.lockspace import LockspaceConfig
from snapd.config.metrics import MetricsConfig
from snapd.config.node import NodeConfig
from snapd.config.table import Table
from snapd.config.volume import VolumeConfig
from snapd.errors import ConfigError

__all__ = [
    "DIRECTORY",
    "NAME",
    "AttachConfig",
    "Config",
    "ExportConfig",
    "FencingConfig",
    "LockspaceConfig",
    "MetricsConfig",
    "NodeConfig",
    "VolumeConfig",
    "find",
    "load",
    "parse",
]

DIRECTORY = Path("/etc/csnap")
"""Where a volume given by name is looked up."""


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    volume: VolumeConfig
    node: NodeConfig
    lockspace: LockspaceConfig
    export: ExportConfig
    metrics: MetricsConfig
    fencing: FencingConfig
    attach: AttachConfig


def find(argument: str) -> Path:
    """Return the file that the CONFIG of a command line means: a path, or a volume's name. Raises ConfigError."""
    if "/" in argument or argument.endswith(".toml"):
        return Path(argument)
    if not NAME.fullmatch(argument):
        raise ConfigError(f"configuration {argument!r}: expected a path, or the name of a volume in {DIRECTORY}")
    return DIRECTORY / f"{argument}.toml"


def load(path: Path) -> Config:
    """Read and check the file. Raises ConfigError."""
    try:
        text = path.read_bytes().decode()
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        names = sorted(other.stem for other in path.parent.glob("*.toml")) if path.parent == DIRECTORY else []
        there = f"; volumes there: {', '.join(names)}" if names else ""
        raise ConfigError(f"{path}: no such file{there}") from error
    except PermissionError as error:
        raise ConfigError(f"{path}: not allowed: its owner and group may read it, usually root and csnap") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number of more digits than Python takes
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not TOML: nested too deeply") from error
    return parse(path, values)


def parse(path: Path, values: dict[str, Any]) -> Config:
    """Check ``values`` as they stand in the file ``path``. Raises ConfigError."""
    root = Table(path, "", values)
    about = volume.read(root.table("volume"))
    config = Config(
        path,
        about,
        node.read(root.table("node", optional=True)),
        lockspace.read(root.table("lockspace"), about.name),
        export.read(root.table("export")),
        metrics.read(root.table("metrics", optional=True), about.name),
        fencing.read(root.table("fencing")),
        attach.read(root.table("attach", optional=True)),
    )
    root.finish()
    return config
