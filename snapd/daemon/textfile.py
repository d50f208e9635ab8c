"""The metrics as a file for node_exporter's textfile collector: for hosts where nothing but node_exporter is scraped.

Several volumes of a host come through the same target there, so every sample has the label ``volume`` besides; cluster
and host are the scrape configuration's, as always. The file is replaced as a whole, and removed by a planned stop:
after a crash it stays, and node_textfile_mtime_seconds says how old it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from snapd.daemon.loop import Loop
from snapd.units import SECOND

INTERVAL = 15 * SECOND
"""How often it is written: as often as node_exporter is scraped by default, or more often."""


FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
"""Not through a link: others may write that directory, too."""


class Labelled(Collector):
    """What ``registry`` collects, each sample with the volume's name."""

    def __init__(self, registry: CollectorRegistry, volume: str) -> None:
        self._registry, self._volume = registry, volume

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [one._replace(labels={**one.labels, "volume": self._volume}) for one in metric.samples]
            yield metric


class Textfile:
    """Written from ``begin`` on, in the loop's thread. ``complain`` is called once for each series of failures."""

    def __init__(
        self, loop: Loop, path: str, registry: CollectorRegistry, volume: str, complain: Callable[[str], None]
    ) -> None:
        self._loop, self._path, self._complain = loop, Path(path), complain
        self._temporary = self._path.with_name(f".{self._path.name}.new")  # a rename within its file system
        self._registry = CollectorRegistry()
        self._registry.register(Labelled(registry, volume))
        self._failed = False

    def begin(self) -> None:
        self._loop.call_later(INTERVAL, self.begin)
        self.write()

    def write(self) -> None:
        """Replace the file. A disk that is full or a directory that is gone is complained of, and tried again."""
        try:
            descriptor = os.open(self._temporary, FLAGS, 0o644)
            with open(descriptor, "wb") as file:
                file.write(generate_latest(self._registry))
                os.fchmod(file.fileno(), 0o644)  # node_exporter is another user
            self._temporary.replace(self._path)
        except OSError as error:
            if not self._failed:
                self._complain(f"[metrics] textfile {self._path}: {error.strerror}")
            self._failed = True
        else:
            self._failed = False

    def remove(self) -> None:
        """Nothing is shown of a daemon that has stopped."""
        for path in (self._temporary, self._path):
            try:
                path.unlink()
            except OSError:
                continue
