"""Configuration files that are wrong in every way a file can be: ConfigError with file and key, or a configuration."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapd import config
from snapd.errors import ConfigError
from snapd.lockspace.etcd import parse_endpoint
from snapd.lockspace.records import MAX_NUMBER, FormatRecord
from tests.support import examples as _examples  # noqa: F401

GOOD = """
[volume]
name = "vmstore"
cluster_uuid = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
origin = "/dev/disk/by-id/x"
chunk_size = "16KiB"
region_size = "64MiB"
type = "clusterized_persistent"
exclusive = true
[node]
name = "host-a"
machine_id = "0123456789abcdef0123456789abcdef"
[lockspace]
endpoints = ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
lease_ttl = 10
freeze_limit = 2.5
ca = "/etc/csnap/ca.pem"
cert = "/etc/csnap/cert.pem"
key = "/etc/csnap/key.pem"
allow_old_etcd = false
[export]
directory = "/run/csnap/vmstore"
[metrics]
listen = "127.0.0.1:9942"
[fencing]
method = "agent"
agent = "/usr/sbin/fence_ipmilan"
timeout = 60
[fencing.options]
lanplus = 1
[fencing.hosts.host-a]
ip = "10.1.0.1"
[fencing.hosts.host-b]
ip = "10.1.0.2"
"""
LINES = GOOD.strip().splitlines()
KEYS = [index for index, line in enumerate(LINES) if "=" in line]

VALUES = st.one_of(
    st.sampled_from([
        '""', '"\\u0000"', '"x\\ny"', '"/"', '"//"', '"/\\uFFFF"', "[]", "{}", "[[]]", "{a = 1}", "true", "inf", "-inf",
        "nan", "-1", "0", "1e999", "1979-05-27T07:32:00Z", "07:32:00", "1979-05-27", '["http://h:1"]', '["http://h"]',
        '["http://h:0"]', '["http://[::1"]', '["http://[::1]:99999"]', '["ftp://h:1"]', '["http://h:1/x"]', "[1]",
        '["http://h:1?x"]', '["http://h:1#x"]', '"0.0.0.0:1"', '"[::1]:1"', '"[::1%lo]:1"', '"127.0.0.1:65536"',
        '"1.2.3.4:٣"', "0x" + "f" * 4096, "0b1" + "0" * 64, "0b1" + "0" * 20000, "9" * 30,
        "'" + "x" * 70000 + "'", '"16KiB"', '"1TiB"', '"999999999999999999TiB"', '"host-a"', '"unsafe"', '"scsi-pr"',
    ]),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.integers(), max_size=3).map(str),
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The good file with some of its lines changed, doubled, moved or left out, or bytes of it changed."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.integers(0, 4)):
            case 0 | 1:
                at = draw(st.sampled_from(KEYS))
                if at < len(lines) and "=" in lines[at]:
                    lines[at] = lines[at].split("=")[0] + "= " + draw(VALUES)
            case 2:
                del lines[draw(st.integers(0, len(lines) - 1))]
            case 3:
                lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(lines)))
            case _:
                lines.insert(draw(st.integers(0, len(lines))), draw(st.text(st.characters(codec="utf-8"), max_size=30)))
    data = "\n".join(lines).encode()
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    return data


def read(data: bytes) -> config.Config | None:
    """What the file of these bytes says; None if it is refused as it should be."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vmstore.toml"
        path.write_bytes(data)
        try:
            return config.load(path)
        except ConfigError as error:
            text = str(error)
            assert text.startswith(f"{path}: "), text
            assert len(text) < 3000
            assert ": [" in text or ": not TOML: " in text, text
            return None


def usable(found: config.Config) -> bool:
    """Whether everything that reads a configuration can go on from it."""
    for endpoint in found.lockspace.endpoints:
        parse_endpoint(endpoint)
    volume = found.volume
    FormatRecord(1, 1 << 40, "x", volume.chunk_size, volume.region_size).to_bytes()
    return volume.region_size <= MAX_NUMBER and not volume.region_size % volume.chunk_size


@settings(max_examples=300)
@given(mutated())
@example(GOOD.encode())
def test_a_mutated_file_is_refused_by_file_and_key_or_makes_sense(data: bytes) -> None:
    """Never another exception, never a value that the rest of csnap would stumble over."""
    found = read(data)
    assert found is None or usable(found)


@settings(max_examples=60)
@given(st.one_of(st.binary(max_size=200), st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode)))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    """No file of few bytes is a configuration."""
    assert read(data) is None


@pytest.mark.parametrize("key", ["region_size", "chunk_size", "lease_ttl", "freeze_limit", "timeout", "lanplus"])
@pytest.mark.parametrize("digits", ["9" * 5000, "0x" + "f" * 5000], ids=["decimal", "hexadecimal"])
def test_regression_a_number_too_long_to_be_printed_is_refused(key: str, digits: str) -> None:
    """Python refuses to turn more than 4,300 digits into a number or a text, with a ValueError of its own."""
    lines = [f"{key} = {digits}" if line.startswith(f"{key} =") else line for line in LINES]
    assert read("\n".join(lines).encode()) is None


def test_a_value_of_any_length_is_shown_shortened() -> None:
    """``read`` asserts that no refusal is longer than a screen."""
    for key in ("name", "origin", "chunk_size", "region_size", "endpoints", "listen", "method", "lanplus"):
        lines = [f'{key} = "{"x" * 100000}"' if line.startswith(f"{key} =") else line for line in LINES]
        read("\n".join(lines).encode())


def test_regression_a_region_larger_than_any_record_can_say_is_refused() -> None:
    """The volume's record in etcd holds numbers below 2**63: what was accepted here could be written, never read."""
    assert read(GOOD.replace('"64MiB"', str(1 << 70)).encode()) is None
    assert read(GOOD.replace('"64MiB"', str(1 << 40)).encode()) is not None


@pytest.mark.parametrize("value", ["[" * 5000, "{a=" * 2000, '"' + "[" * 100000], ids=["lists", "tables", "text"])
def test_a_file_nested_too_deeply_is_refused(value: str) -> None:
    """The parser's recursion ends in a refusal."""
    assert read(GOOD.replace('"64MiB"', value).encode()) is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                    max_leaves=6))  # fmt: skip
def test_a_section_that_is_something_else_is_refused(value: Any) -> None:
    """Any value in the place of any section."""
    for section in ("volume", "node", "lockspace", "export", "metrics", "fencing"):
        values = {"volume": {}, "lockspace": {}, "export": {}, "fencing": {}, section: value}
        with pytest.raises(ConfigError, match=r"^vmstore: "):
            config.parse(Path("vmstore"), values)
