"""``csnap doctor``: verdicts on etcd and its certificates."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from snapd.doctor.certificate import ends, pem_ends
from snapd.doctor.etcd import ClusterFacts, EndpointFacts, FileFacts, judge, judge_file
from snapd.doctor.finding import Finding, Level
from snapd.errors import FormatError
from snapd.units import GIB, MIB

GOOD = EndpointFacts(
    "https://10.0.0.1:2379", version="3.5.24", member=1, leader=2, term=7, raft_index=5000, revision=4000,
    size=100 * MIB, in_use=90 * MIB, quota=2 * GIB, trips=(0.001, 0.002), clock_offset=0.4, certificate_days=300.0,
)  # fmt: skip
OTHERS = tuple(replace(GOOD, url=f"https://10.0.0.{n}:2379", member=n) for n in (2, 3))
CLUSTER = ClusterFacts((GOOD, *OTHERS), ("a", "b", "c"), 3000, (0.002, 0.003), 10, False)


def found(facts: ClusterFacts, check: str, about: str = "") -> Finding:
    (finding,) = [finding for finding in judge(facts) if (finding.check, finding.about) == (check, about)]
    return finding


def test_a_good_cluster_has_nothing_but_ok() -> None:
    """Seven checks of each endpoint, seven of the cluster."""
    findings = list(judge(CLUSTER))
    assert {finding.level for finding in findings} == {Level.OK}
    assert len(findings) == 3 * 8 + 7


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({"error": "unavailable: connection refused"}, "endpoint", Level.FAILED),
        ({"version": "3.4.23"}, "version", Level.FAILED),
        ({"version": "3.5.14"}, "version", Level.WARNING),
        ({"version": "soon"}, "version", Level.FAILED),
        ({"alarms": ("memberID:1 alarm:NOSPACE ",)}, "alarm", Level.FAILED),
        ({"alarms": ("CORRUPT",)}, "alarm", Level.FAILED),
        ({"alarms": ("etcdserver: no leader",)}, "alarm", Level.WARNING),
        ({"size": 1700 * MIB}, "quota", Level.WARNING),
        ({"size": 1990 * MIB}, "quota", Level.FAILED),
        ({"quota": None}, "quota", Level.UNCHECKED),
        ({"size": 600 * MIB}, "fragmentation", Level.NOTE),
        ({"in_use": None}, "fragmentation", Level.UNCHECKED),
        ({"trips": (0.2, 0.2)}, "round_trip", Level.NOTE),
        ({"trips": (0.001, 3.0)}, "round_trip", Level.WARNING),
        ({"trips": (0.001, 6.0)}, "round_trip", Level.FAILED),
        ({"trips": ()}, "round_trip", Level.UNCHECKED),
        ({"clock_offset": -90.0}, "clock", Level.WARNING),
        ({"clock_offset": None}, "clock", Level.UNCHECKED),
        ({"certificate_days": -1.0}, "certificate", Level.FAILED),
        ({"certificate_days": 5.0}, "certificate", Level.WARNING),
        ({"certificate_days": 30.0}, "certificate", Level.NOTE),
        ({"certificate_days": None}, "certificate", Level.UNCHECKED),
    ],
)
def test_an_endpoint_that_is_not_well(change: dict[str, object], check: str, level: Level) -> None:
    """Named with its address, and with what to do if there is something."""
    bad = replace(GOOD, **change)  # type: ignore[arg-type]
    finding = found(replace(CLUSTER, endpoints=(bad, *OTHERS)), check, GOOD.url)
    assert finding.level == level
    assert bool(finding.todo) or level in (Level.UNCHECKED, Level.NOTE)


def test_an_old_version_that_is_allowed_is_a_warning() -> None:
    """allow_old_etcd."""
    old = replace(GOOD, version="3.4.23")
    allowed = replace(CLUSTER, endpoints=(old, *OTHERS), allow_old=True)
    assert found(allowed, "version", GOOD.url).level == Level.WARNING
    assert found(allowed, "versions").level == Level.WARNING  # and they differ


DOWN = replace(GOOD, error="unavailable")


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({"endpoints": (DOWN, *OTHERS)}, "quorum", Level.OK),
        ({"endpoints": (DOWN, replace(OTHERS[0], error="x"), OTHERS[1]), "read_trips": ()}, "quorum", Level.FAILED),
        ({"endpoints": (GOOD,)}, "quorum", Level.NOTE),
        ({"members": None}, "quorum", Level.UNCHECKED),
        ({"endpoints": (replace(GOOD, leader=0), *OTHERS)}, "leader", Level.FAILED),
        ({"endpoints": (replace(GOOD, leader=3), *OTHERS)}, "leader", Level.WARNING),
        ({"endpoints": (DOWN,)}, "leader", Level.UNCHECKED),
        ({"members": ("a",)}, "members", Level.WARNING),
        ({"members": ("a", "b", "c", "d")}, "members", Level.NOTE),
        ({"endpoints": (GOOD, OTHERS[0])}, "members", Level.NOTE),
        ({"oldest": 1}, "compaction", Level.WARNING),
        ({"oldest": None}, "compaction", Level.UNCHECKED),
        ({"endpoints": (replace(GOOD, revision=900),), "oldest": 1}, "compaction", Level.NOTE),
        ({"endpoints": (replace(GOOD, revision=3_000_000),)}, "compaction", Level.WARNING),
        ({"endpoints": (replace(GOOD, raft_index=1), *OTHERS)}, "lag", Level.WARNING),
        ({"read_trips": ()}, "reads", Level.FAILED),
        ({"read_trips": (9.0,)}, "reads", Level.FAILED),
    ],
)
def test_a_cluster_that_is_not_well(change: dict[str, object], check: str, level: Level) -> None:
    """Whatever each endpoint says for itself."""
    assert found(replace(CLUSTER, **change), check).level == level  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (FileFacts("/c", "cert", days=100.0), Level.OK),
        (FileFacts("/c", "cert", days=-3.0), Level.FAILED),
        (FileFacts("/c", "cert", error="No such file"), Level.UNCHECKED),
        (FileFacts("/k", "key"), Level.OK),
        (FileFacts("/k", "key", readable_by_all=True), Level.WARNING),
    ],
)
def test_tls_files(facts: FileFacts, level: Level) -> None:
    """A certificate ends; a key is nobody else's."""
    (finding,) = judge_file(facts)
    assert finding.level == level


@pytest.mark.parametrize("algorithm", [("rsa:2048",), ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")])
def test_when_a_certificate_ends_is_what_openssl_says(tmp_path: Path, algorithm: tuple[str, ...]) -> None:
    """Of PEM and DER; the first to end counts of a chain."""
    for name, days in (("one", "30"), ("two", "20000")):  # after 2050: another form of time
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", *algorithm, "-nodes", "-days", days, "-subj", f"/CN={name}",
             "-keyout", tmp_path / "key", "-out", tmp_path / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
        text = (tmp_path / f"{name}.pem").read_bytes()
        told = subprocess.run(
            ["openssl", "x509", "-noout", "-enddate"], input=text, capture_output=True, check=True
        ).stdout
        expected = datetime.strptime(told.decode().strip(), "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
        assert pem_ends(text) == expected
        assert abs(expected - datetime.now(UTC) - timedelta(days=int(days))) < timedelta(minutes=5)
        der = subprocess.run(["openssl", "x509", "-outform", "DER"], input=text, capture_output=True, check=True).stdout
        assert ends(der) == expected
        for cut in range(0, len(der), 7):  # whatever is left of it: an answer or a named error
            try:
                ends(der[:cut])
            except FormatError:
                continue
    both = (tmp_path / "two.pem").read_bytes() + (tmp_path / "one.pem").read_bytes()
    assert pem_ends(both) == pem_ends((tmp_path / "one.pem").read_bytes())


@pytest.mark.parametrize("text", [b"", b"-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----", b"hello"])
def test_what_is_no_certificate_is_said(text: bytes) -> None:
    """No traceback."""
    with pytest.raises(FormatError):
        pem_ends(text)
