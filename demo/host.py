"""One host of the demo: its configuration file, the ``csnap`` command for it, and what its daemon says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[1]
COMMAND_LIMIT = 60.0  # seconds for any csnap command
METRICS_LIMIT = 5.0

CONFIG = """\
[volume]
name = "{volume.name}"
cluster_uuid = "{volume.uuid}"
origin = "{volume.origin}"
chunk_size = "{volume.chunk_size}"
region_size = "{volume.region_size}"
type = "clusterized_persistent"
[node]
name = "{name}"
[lockspace]
endpoints = ["{volume.endpoint}"]
lease_ttl = {volume.lease_ttl}
allow_old_etcd = true
[export]
directory = "{directory}"
[metrics]
listen = "127.0.0.1:{port}"
[fencing]
method = "unsafe"
"""


@dataclass(frozen=True, slots=True)
class Volume:
    """What is the same on every host."""

    name: str
    uuid: str
    origin: Path
    endpoint: str
    lease_ttl: int = 3
    chunk_size: str = "16KiB"
    region_size: str = "1MiB"


Guard = Callable[[], AbstractContextManager[None]]
"""Around starting a process: no signal handler raises in it."""


class CommandFailed(Exception):
    """A csnap command did not end with 0."""


def csnap() -> list[str]:
    """Return the installed ``csnap`` of this Python, or the same program from the sources."""
    installed = Path(sys.executable).with_name("csnap")
    if installed.exists():
        return [str(installed)]
    return [sys.executable, "-c", "import sys; from snapd.cli.main import main; sys.exit(main())"]


def environment() -> dict[str, str]:
    """Return the environment for csnap and for ``python -m demo.*``: the modules of this checkout are found."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def run_csnap(*arguments: str | Path, guard: Guard = nullcontext) -> subprocess.CompletedProcess[str]:
    """Run a csnap command to its end; whatever is raised meanwhile, it does not go on without us."""
    command = [*csnap(), *map(str, arguments)]
    pipe = subprocess.PIPE
    process = None
    try:
        with guard():
            process = subprocess.Popen(
                command, env=environment(), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
            )
        output, errors = process.communicate(timeout=COMMAND_LIMIT)
    except BaseException:
        if process is not None:
            process.kill()
            process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def checked_csnap(*arguments: str | Path, guard: Guard = nullcontext) -> str:
    """Run a csnap command that must succeed; return its output."""
    ended = run_csnap(*arguments, guard=guard)
    if ended.returncode:
        shown = " ".join(map(str, arguments))
        raise CommandFailed(f"csnap {shown}: exit {ended.returncode}: {ended.stderr.strip() or ended.stdout.strip()}")
    return ended.stdout


class Host:
    """A host with a directory of its own, on a volume it shares with others."""

    def __init__(self, name: str, directory: Path, volume: Volume, port: int, guard: Guard = nullcontext) -> None:
        directory.mkdir(exist_ok=True)
        self.name = name
        self.directory = directory
        self.volume = volume
        self.config = directory / f"{volume.name}.toml"
        self.socket = directory / "nbd.sock"
        self._port = port
        self._guard = guard
        self.config.write_text(CONFIG.format(volume=volume, name=name, directory=directory, port=port))

    def serve(self) -> list[str]:
        """Return the command of the daemon."""
        return [*csnap(), "serve", str(self.config)]

    def csnap(self, *arguments: str | Path) -> str:
        """Run a command that takes this host's configuration after the words that name it; return its output."""
        words = [argument for argument in arguments if argument != "CONFIG"]
        assert len(words) == len(arguments) - 1
        given = (self.config if argument == "CONFIG" else argument for argument in arguments)
        return checked_csnap(*given, guard=self._guard)

    def status(self) -> dict[str, Any] | None:
        """Return what ``csnap status --json`` says; None while no daemon answers."""
        ended = run_csnap("status", self.config, "--json", guard=self._guard)
        if ended.returncode:
            return None
        status: dict[str, Any] = json.loads(ended.stdout)
        return status

    def metrics(self) -> Metrics:
        """Ask the daemon's Prometheus endpoint."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self._port}/metrics", timeout=METRICS_LIMIT) as answer:
            return Metrics(answer.read().decode())


class Metrics:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of this name that carry these labels; 0 if there is none."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= dict(sample.labels).items()
        )

    def quantile(self, name: str, part: float, **labels: str) -> float:
        """Return the upper bound of the bucket in which this part of a histogram's observations ends."""
        buckets: dict[float, float] = {}
        for sample in self._samples:
            if sample.name == f"{name}_bucket" and labels.items() <= dict(sample.labels).items():
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
        total = buckets.get(float("inf"), 0.0)
        return next((bound for bound, count in sorted(buckets.items()) if total and count >= part * total), 0.0)
