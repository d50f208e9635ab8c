"""The configuration of one volume on one host: a TOML file, read once, checked whole, then frozen.

    [volume]     name, cluster_uuid, origin, chunk_size; optional: region_size, type, exclusive
    [node]       optional: name (default: the host's name), machine_id
    [lockspace]  endpoints; optional: lease_ttl, freeze_limit, ca, cert, key, allow_old_etcd
    [export]     directory
    [metrics]    optional: listen
    [fencing]    method; for "agent": agent, timeout, [fencing.options], [fencing.hosts.<node>]
                 for "watchdog": device, watchdog_timeout

Every error is a ConfigError that names file, section, key, value and what was expected. A key that nobody reads is an
error too: a misspelt one would silently mean the default. docs/configuration.md explains each key.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from snapd.errors import ConfigError, Refused
from snapd.units import KIB, MIB, SECOND, format_size, is_power_of_two, parse_size

T = TypeVar("T")

DIRECTORY = Path("/etc/csnap")
"""Where a volume given by name is looked up."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""Names of volumes and nodes: they become parts of keys, units and labels."""

CHUNK_LEAST, CHUNK_MOST = 4 * KIB, MIB
REGION_MOST = 1 << 50
"""1 PiB: one region for any origin; the volume's record in etcd holds numbers below 2**63."""

TTL_LEAST, TTL_MOST = 2, 300
"""Seconds. Below 2 nothing is left of a lease after the margin of one second; above, an outage is a long one."""

FREEZE_MOST = 300
FENCE_TIMEOUT_MOST = 3600
SOCKET_PATH_MOST = 107
"""Bytes: sockaddr_un has 108 with the terminating zero."""

WATCHDOG_LEAST, WATCHDOG_MOST = 2, 600
"""Seconds: what survivors wait besides the lease, and what a busy host may take between two pets."""

METHODS = ("unsafe", "agent", "scsi-pr", "watchdog")
ADMIN_SOCKET, NBD_SOCKET, HELPER_SOCKET, LOCK_FILE = "admin.sock", "nbd.sock", "helper.sock", "lock"


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """Sizes in bytes. ``region_size`` 0: chosen from the origin's size when the volume is initialized."""

    name: str
    cluster_uuid: str
    origin: str
    chunk_size: int
    region_size: int
    type: str
    exclusive: bool


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """``machine_id`` empty: /etc/machine-id."""

    name: str
    machine_id: str


@dataclass(frozen=True, slots=True)
class LockspaceConfig:
    """``lease_ttl`` in seconds, as etcd counts; ``freeze_limit`` in nanoseconds; paths may be empty."""

    endpoints: tuple[str, ...]
    lease_ttl: int
    freeze_limit: int
    ca: str
    cert: str
    key: str
    allow_old_etcd: bool


@dataclass(frozen=True, slots=True)
class ExportConfig:
    directory: Path

    @property
    def admin(self) -> str:
        return str(self.directory / ADMIN_SOCKET)

    @property
    def nbd(self) -> str:
        return str(self.directory / NBD_SOCKET)

    @property
    def helper(self) -> str:
        return str(self.directory / HELPER_SOCKET)

    @property
    def lock(self) -> str:
        return str(self.directory / LOCK_FILE)


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``host`` empty: no endpoint. Port 0: any free one, shown by ``csnap status``."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class FencingConfig:
    """``options`` and ``hosts`` are what the agent reads; they may be secret and are never shown."""

    method: str
    agent: str
    timeout: int  # seconds
    options: dict[str, str] = field(repr=False)
    hosts: dict[str, dict[str, str]] = field(repr=False)
    device: str = "/dev/watchdog"
    watchdog_timeout: int = 15  # seconds

    @property
    def privileged(self) -> bool:
        """Whether it needs the helper."""
        return self.method in ("scsi-pr", "watchdog")


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    volume: VolumeConfig
    node: NodeConfig
    lockspace: LockspaceConfig
    export: ExportConfig
    metrics: MetricsConfig
    fencing: FencingConfig


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
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number of more digits than Python takes
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not TOML: nested too deeply") from error
    return parse(path, values)


def parse(path: Path, values: dict[str, Any]) -> Config:
    """Check ``values`` as they stand in the file ``path``. Raises ConfigError."""
    root = _Table(path, "", values)
    config = Config(
        path,
        _volume(root.table("volume")),
        _node(root.table("node", optional=True)),
        _lockspace(root.table("lockspace")),
        _export(root.table("export")),
        _metrics(root.table("metrics", optional=True)),
        _fencing(root.table("fencing")),
    )
    root.finish()
    return config


class _Table:
    """One table of the file: hands out its values checked, then refuses what nobody asked for."""

    def __init__(self, path: Path, name: str, values: dict[str, Any]) -> None:
        self._path = path
        self._name = name
        self._values = values
        self._known: list[str] = []

    def error(self, key: str, expected: str, shown: str = "") -> ConfigError:
        where = f"{self._path}: [{self._name}] {key}" if self._name else f"{self._path}: [{key}]"
        return ConfigError(f"{where}{f' = {shown}' if shown else ''}: {expected}")

    def table(self, key: str, optional: bool = False) -> _Table:
        self._known.append(key)
        found = self._values.get(key, {} if optional else None)
        name = f"{self._name}.{key}" if self._name else key
        if found is None:
            raise ConfigError(f"{self._path}: [{name}]: missing")
        if not isinstance(found, dict):
            raise self.error(key, "expected a table", _toml(found))
        return _Table(self._path, name, found)

    def get(self, key: str, check: Callable[[Any], T], default: T | None = None, why: str = "") -> T:
        """Return the checked value. ``check`` raises ValueError or Refused saying what was expected."""
        self._known.append(key)
        if key not in self._values:
            if default is None:
                raise self.error(key, f"missing{why}")
            return default
        value = self._values[key]
        try:
            return check(value)
        except (ValueError, Refused) as error:
            raise self.error(key, str(error), _toml(value)) from None

    def texts(self) -> dict[str, str]:
        """Return every key as text for a fencing agent. Errors do not show the values: they may be secret."""
        return {key: self._text(key, value) for key, value in self._values.items()}

    def _text(self, key: str, value: Any) -> str:
        self._known.append(key)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key, re.ASCII):
            raise self.error(key, "expected a key of letters, digits, '_' and '-'")
        if isinstance(value, bool):
            return str(int(value))
        try:
            text = str(value)
        except ValueError:  # a number of more than 4,300 digits
            text = "\n"
        if not isinstance(value, str | int | float) or any(ord(letter) < 0x20 for letter in text):
            raise self.error(key, "expected a text or a number without line breaks")
        return text

    def names(self) -> list[str]:
        return list(self._values)

    def finish(self) -> None:
        for key in self._values:
            if key not in self._known:
                close = difflib.get_close_matches(key, self._known, 1)
                hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(self._known)}"
                raise self.error(key, f"unknown; {hint}")


def _toml(value: Any) -> str:
    """Return ``value`` about as it stands in the file, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
    except ValueError:  # a number of more than 4,300 digits in it
        return "..."
    return shown if len(shown) <= 120 else shown[:117] + "..."


# ---- checks of single values


def _string(value: Any) -> str:
    if not isinstance(value, str) or not value or any(ord(letter) < 0x20 for letter in value):
        raise ValueError("expected a text")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _whole(least: int, most: int, unit: str) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"expected a whole number of {unit} from {least} to {most}")
        return value

    return check


def _freeze_limit(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= FREEZE_MOST:
        raise ValueError(f"expected seconds, more than 0 and at most {FREEZE_MOST}")
    return int(value * SECOND)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("expected 1 to 63 letters, digits, '.', '_', '-', not beginning with one of these")
    return value


def _uuid(value: Any) -> str:
    """A whole canonical UUID: one that is cut short or padded would name another cluster."""
    try:
        good = isinstance(value, str) and str(UUID(value)) == value.lower() and UUID(value).int != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("expected a UUID like 5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11 (uuidgen makes one)")
    return str(value).lower()


def _absolute(value: Any) -> str:
    if not _string(value).startswith("/"):
        raise ValueError("expected an absolute path")
    return os.path.normpath("/" + str(value).lstrip("/"))


def _chunk_size(value: Any) -> int:
    size = parse_size(_string(value)) if not isinstance(value, int) or isinstance(value, bool) else value
    if not is_power_of_two(size) or not CHUNK_LEAST <= size <= CHUNK_MOST:
        raise ValueError(f"expected a power of two from {format_size(CHUNK_LEAST)} to {format_size(CHUNK_MOST)}")
    return size


def _region_size(chunk: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        size = parse_size(_string(value)) if not isinstance(value, int) or isinstance(value, bool) else value
        if not is_power_of_two(size) or not chunk <= size <= REGION_MOST:
            least, most = format_size(chunk), format_size(REGION_MOST)
            raise ValueError(f"expected a power of two, at least chunk_size ({least}), at most {most}")
        return size

    return check


def _machine_id(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{32}", value):
        raise ValueError("expected 32 hexadecimal digits, as in /etc/machine-id")
    return value


def _endpoints(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('expected a list like ["https://10.0.0.1:2379"]')
    for endpoint in value:
        try:
            url = urlsplit(endpoint)
            good = url.scheme in ("http", "https") and url.hostname and url.port and url.path in ("", "/")
        except (ValueError, TypeError, AttributeError):
            good = False
        if not good or "@" in endpoint:
            raise ValueError(f"{endpoint!r} is no endpoint, expected http(s)://host:port")
    return tuple(value)


def _listen(value: Any) -> tuple[str, int]:
    """An address, never a host's name: nothing here waits for DNS."""
    if value == "":
        return "", 0
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})", value if isinstance(value, str) else "", re.ASCII)
    try:
        if match is None or int(match[3]) > 65535:
            raise ValueError
        host = str(ipaddress.ip_address(match[1] or match[2]))
    except ValueError:
        raise ValueError('expected an IP address and a port like "127.0.0.1:9942", or "" for none') from None
    return host, int(match[3])


def _method(value: Any) -> str:
    if value not in METHODS:
        raise ValueError(f"expected one of {', '.join(METHODS)}")
    return str(value)


# ---- tables


def _volume(table: _Table) -> VolumeConfig:
    chunk = table.get("chunk_size", _chunk_size)
    volume = VolumeConfig(
        name=table.get("name", _name),
        cluster_uuid=table.get("cluster_uuid", _uuid),
        origin=table.get("origin", _absolute),
        chunk_size=chunk,
        region_size=table.get("region_size", _region_size(chunk), 0),
        type=table.get("type", _string, "clusterized_persistent"),
        exclusive=table.get("exclusive", _boolean, True),
    )
    table.finish()
    return volume


def _node(table: _Table) -> NodeConfig:
    node = NodeConfig(table.get("name", _name, ""), table.get("machine_id", _machine_id, ""))
    table.finish()
    if not node.name:
        try:
            return NodeConfig(_name(socket.gethostname()), node.machine_id)
        except ValueError as error:
            raise table.error("name", f"missing, and the host's name does not serve: {error}") from None
    return node


def _lockspace(table: _Table) -> LockspaceConfig:
    lockspace = LockspaceConfig(
        endpoints=table.get("endpoints", _endpoints),
        lease_ttl=table.get("lease_ttl", _whole(TTL_LEAST, TTL_MOST, "seconds"), 10),
        freeze_limit=table.get("freeze_limit", _freeze_limit, 5 * SECOND),
        ca=table.get("ca", _absolute, ""),
        cert=table.get("cert", _absolute, ""),
        key=table.get("key", _absolute, ""),
        allow_old_etcd=table.get("allow_old_etcd", _boolean, False),
    )
    table.finish()
    if bool(lockspace.cert) != bool(lockspace.key):
        missing = "key" if lockspace.cert else "cert"
        raise table.error(missing, "missing: a client certificate needs both cert and key")
    plain = [endpoint for endpoint in lockspace.endpoints if endpoint.startswith("http:")]
    if (lockspace.ca or lockspace.cert) and plain:
        raise table.error("endpoints", "expected https:// because ca or cert is set", plain[0])
    return lockspace


def _export(table: _Table) -> ExportConfig:
    directory = table.get("directory", _absolute)
    table.finish()
    export = ExportConfig(Path(directory))
    for path in (export.admin, export.nbd, export.helper):
        length = len(os.fsencode(path))
        if length > SOCKET_PATH_MOST:
            raise table.error(
                "directory",
                f"the socket path {path} has {length} bytes, at most {SOCKET_PATH_MOST} fit",
                _toml(directory),
            )
    return export


def _metrics(table: _Table) -> MetricsConfig:
    host, port = table.get("listen", _listen, ("127.0.0.1", 9942))
    table.finish()
    return MetricsConfig(host, port)


def _fencing(table: _Table) -> FencingConfig:
    method = table.get("method", _method, why=f": how dead hosts are kept from the disk; one of {', '.join(METHODS)}")
    agent = table.get("agent", _absolute, "")
    timeout = table.get("timeout", _whole(1, FENCE_TIMEOUT_MOST, "seconds"), 60)
    options = table.table("options", optional=True).texts()
    device = table.get("device", _absolute, "/dev/watchdog")
    watchdog_timeout = table.get("watchdog_timeout", _whole(WATCHDOG_LEAST, WATCHDOG_MOST, "seconds"), 15)
    by_host = table.table("hosts", optional=True)
    hosts = {name: by_host.table(name).texts() for name in by_host.names()}
    table.finish()
    if method == "agent" and not agent:
        raise table.error("agent", 'missing: method "agent" needs the path of a fence agent')
    for name in hosts:
        if not NAME.fullmatch(name):
            raise table.error(f"hosts.{name}", "expected the name of a node")
    return FencingConfig(method, agent, timeout, options, hosts, device, watchdog_timeout)
