"""When a certificate ends: the one field of X.509 that the doctor needs.

Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version (optional), serialNumber INTEGER, signature SEQUENCE,
issuer SEQUENCE, validity SEQUENCE { notBefore, notAfter }, ... } ... }; a time is UTCTime (tag 0x17, two digits of the
year) or GeneralizedTime (0x18). The ssl module tells it only of certificates that it has found valid.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from snapd.errors import FormatError

SEQUENCE, INTEGER, VERSION, UTC_TIME, GENERALIZED_TIME = 0x30, 0x02, 0xA0, 0x17, 0x18
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


def ends(der: bytes) -> datetime:
    """Return notAfter. Raises FormatError."""
    try:
        fields = list(_elements(_inside(_inside(der, SEQUENCE), SEQUENCE)))
        if fields and fields[0][0] == VERSION:
            fields = fields[1:]
        tag, validity = fields[3]
        if tag != SEQUENCE:
            raise FormatError(f"certificate: tag {tag:#x}: expected its validity")
        (_, _), (kind, text) = _elements(validity)
        return _time(kind, text)
    except (IndexError, ValueError) as error:
        raise FormatError(f"certificate: cut short or no X.509: {error}") from None


def pem_ends(text: bytes) -> datetime:
    """Return when the first of the certificates in a PEM file ends that ends first. Raises FormatError."""
    try:
        found = [ends(base64.b64decode(body)) for body in PEM.findall(text)]
    except binascii.Error as error:
        raise FormatError(f"certificate: no base64: {error}") from None
    if not found:
        raise FormatError("certificate: no PEM certificate in it")
    return min(found)


def _inside(data: bytes, tag: int) -> bytes:
    """The content of the element that ``data`` begins with."""
    found, content = next(_elements(data), (0, b""))
    if found != tag:
        raise FormatError(f"certificate: tag {found:#x}: expected {tag:#x}")
    return content


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + length > len(data):
            raise ValueError("an element longer than what holds it")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, text: bytes) -> datetime:
    """RFC 5280: seconds and Z are always there; two digits from 50 on are of the last century."""
    digits = text.decode("ascii", "replace").removesuffix("Z")
    if tag == UTC_TIME:
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    elif tag != GENERALIZED_TIME:
        raise FormatError(f"certificate: tag {tag:#x}: expected a time")
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
