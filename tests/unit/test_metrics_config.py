"""[metrics]: what may be said, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapd.config.metrics import MetricsConfig, read
from snapd.config.table import Table
from snapd.errors import ConfigError

CERTS = {"tls_cert": "/c.pem", "tls_key": "/k.pem"}


def config(**values: object) -> MetricsConfig:
    return read(Table(Path("v.toml"), "metrics", values), "v")


def test_what_may_be_said() -> None:
    """A port on an address, a socket, nothing; TLS and mutual TLS; a text file with or without an endpoint."""
    assert config() == MetricsConfig("127.0.0.1", 9942)
    assert config(listen="[::1]:1") == MetricsConfig("::1", 1)
    assert config(listen="unix:/run/csnap/v/m.sock") == MetricsConfig("", 0, "/run/csnap/v/m.sock")
    secure = config(**CERTS, tls_client_ca="/ca.pem")
    assert (secure.tls_cert, secure.tls_key, secure.tls_client_ca) == ("/c.pem", "/k.pem", "/ca.pem")
    assert config(tls_cert="credential:metrics.cert", tls_key="credential:metrics.key").tls_key == (
        "/etc/credstore/csnap.v.metrics.key"
    )
    assert config(listen="", textfile="/var/lib/x/csnap-v.prom") == MetricsConfig(
        "", 0, textfile="/var/lib/x/csnap-v.prom"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"listen": "unix:m.sock"}, ["listen", "absolute path"]),
        ({"listen": "unix:/" + "x" * 108}, ["listen", "107 bytes"]),
        ({"tls_cert": "/c.pem"}, ["tls_key", "both"]),
        ({"tls_key": "/k.pem"}, ["tls_cert", "both"]),
        ({"tls_client_ca": "/ca.pem"}, ["tls_cert", "missing"]),
        ({**CERTS, "listen": "unix:/m.sock"}, ["listen", "because tls_cert is set"]),
        ({**CERTS, "listen": ""}, ["listen", "because tls_cert is set"]),
        ({"textfile": "/var/lib/x/csnap.txt"}, ["textfile", ".prom"]),
        ({"textfile": "csnap.prom"}, ["textfile", "absolute path"]),
        ({"tls_ca": "/x"}, ["tls_ca", "unknown"]),
    ],
)
def test_what_is_refused(values: dict[str, object], said: list[str]) -> None:
    """Naming the key and what was expected."""
    with pytest.raises(ConfigError) as caught:
        config(**values)
    assert all(word in str(caught.value) for word in ["v.toml", "[metrics]", *said])
