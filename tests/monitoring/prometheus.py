"""A real Prometheus (Debian's) that scrapes a cluster's daemons every second and knows the project's rules, hurried."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.ports import free_ports
from tests.monitoring.hurried import hurried
from tests.monitoring.promtool import RULES
from tests.support.daemons import Daemon
from tests.support.etcd_server import wait_for

INTERVAL = "1s"
WINDOW = "10s"  # what Grafana would make of $__rate_interval, and what the tests' rules have for 5 minutes
LIMIT = 90.0  # seconds until Prometheus has seen what happened, on a busy machine
STOP_LIMIT = 20.0


class Prometheus:
    """In a directory of its own, on loopback. ``targets``: addresses of the hosts' endpoints."""

    def __init__(self, directory: Path, targets: dict[str, str]) -> None:
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        for path in RULES:
            (directory / path.name).write_text(hurried(path.read_text()))
        scraped = [
            {"targets": [at], "labels": {"cluster": "c1", "volume": "vol", "host": name}}
            for name, at in targets.items()
        ]
        config = {
            "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
            "rule_files": [path.name for path in RULES],
            "scrape_configs": [{"job_name": "csnap", "static_configs": scraped}],
        }
        (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._log = directory / "prometheus.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address={self.address}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        print(self._log.read_text(errors="replace")[-2000:])

    def ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with self._opener.open(f"http://{self.address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, what: str, **parameters: str) -> dict[str, Any]:
        with self._opener.open(
            f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=20
        ) as answer:
            body: dict[str, Any] = json.loads(answer.read())
        assert body["status"] == "success"
        data: dict[str, Any] = body["data"]
        return data

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples that are numbers; an expression that fails raises."""
        return [one for one in self.ask("query", query=expression)["result"] if one["value"][1] != "NaN"]

    def fired(self, window: str = "1h") -> set[str]:
        """Return the alerts that fire or did within the window; one that fired for a second is among them."""
        found = self.query(f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{window}]))')
        return {one["metric"]["alertname"] for one in found}

    def firing(self) -> set[str]:
        """Return those that fire now."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def wait_fired(self, *alerts: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return when all of them have fired; ``meanwhile`` is done between two looks."""

        def all_have() -> bool:
            meanwhile()
            return set(alerts) <= self.fired()

        try:
            wait_for(all_have, "they are alerts", LIMIT)
        finally:
            print("not fired:", *sorted(set(alerts) - self.fired()))

    def wait_over(self, *alerts: str) -> None:
        """Return when none of them fires any more."""
        wait_for(lambda: not set(alerts) & self.firing(), f"{alerts} are over", LIMIT)


@contextmanager
def scraping(hosts: Iterable[Daemon], directory: Path) -> Iterator[Prometheus]:
    """A Prometheus that has scraped each of these daemons, which run."""
    targets = {}
    for host in hosts:
        status = host.status()
        assert status is not None
        targets[host.name] = str(status["metrics"])
    server = Prometheus(directory, targets)
    try:
        wait_for(server.ready, "Prometheus is ready", LIMIT)
        wait_for(lambda: len(server.query("up == 1")) == len(targets), "every daemon is scraped", LIMIT)
        yield server
    finally:
        server.close()
