"""Commands to the kernel's NBD driver, and its announcements of dead connections."""

from __future__ import annotations

import errno
import os
import socket

from snapd.attach import genetlink
from snapd.errors import CsnapError, Refused

ANSWER_LIMIT = 30.0
"""Seconds. The driver answers at once, but for a lock that whoever opens the device may hold for a moment."""

DATAGRAM = 1 << 16
NETLINK_GENERIC = 16  # Python has no name for it


class Control:
    """The family ``nbd``. Raises Refused: the kernel has none, i.e. its module is not loaded."""

    def __init__(self) -> None:
        self._sequence = 0
        self._sock = _socket()
        try:
            answer = self._ask(
                genetlink.CONTROLLER,
                genetlink.CTRL_GETFAMILY,
                genetlink.CTRL_VERSION,
                genetlink.text(genetlink.CTRL_FAMILY_NAME, genetlink.FAMILY),
            )
        except OSError as error:
            self._sock.close()
            if error.errno == errno.ENOENT:
                raise Refused("the kernel has no NBD client: modprobe nbd") from None
            raise CsnapError(f"netlink: {error.strerror}") from error
        values = answer[0].attributes
        self._family = genetlink.number(values, genetlink.CTRL_FAMILY_ID)
        groups = genetlink.attributes(values.get(genetlink.CTRL_MCAST_GROUPS, b""))
        self._group = next(
            (genetlink.number(genetlink.attributes(one), genetlink.CTRL_GROUP_ID) for one in groups.values()), 0
        )

    def close(self) -> None:
        self._sock.close()

    def connect(self, *, index: int, attributes: tuple[bytes, ...]) -> None:
        """Raises CsnapError; Refused, if the device is in use or this process may not."""
        self._command(index, genetlink.CONNECT, *attributes)

    def reconfigure(self, *, index: int, attributes: tuple[bytes, ...]) -> None:
        """Offer a socket; also succeeds if the kernel does not take it, having a live one. Raises CsnapError."""
        self._command(index, genetlink.RECONFIGURE, *attributes)

    def disconnect(self, index: int) -> None:
        """Raises CsnapError. Nothing happens if it is not connected."""
        self._command(index, genetlink.DISCONNECT, genetlink.u32(genetlink.INDEX, index))

    def subscribe(self) -> Deaths:
        return Deaths(self._family, self._group)

    def _command(self, index: int, command: int, *attributes: bytes) -> None:
        try:
            self._ask(self._family, command, genetlink.VERSION, *attributes)
        except OSError as error:
            device = f"/dev/nbd{index}"
            match error.errno:
                case errno.EPERM:
                    raise Refused(f"{device}: attaching and detaching needs CAP_SYS_ADMIN") from None
                case errno.EBUSY:
                    raise Refused(f"{device}: in use by another NBD client") from None
                case _:
                    raise CsnapError(f"{device}: the kernel's NBD client: {error.strerror}") from error

    def _ask(self, family: int, command: int, version: int, *attributes: bytes) -> list[genetlink.Message]:
        """Send, and return what came before the acknowledgement. Raises OSError with the kernel's errno."""
        self._sequence += 1
        self._sock.send(genetlink.request(family, command, version, self._sequence, *attributes))
        found: list[genetlink.Message] = []
        while True:
            for message in genetlink.messages(self._sock.recv(DATAGRAM)):
                if message.sequence != self._sequence:
                    continue  # a late answer to what was given up
                if message.type != genetlink.ERROR:
                    found.append(message)
                elif message.error:
                    raise OSError(message.error, os.strerror(message.error))
                else:
                    return found


class Deaths:
    """The driver's announcements that a connection of a device is dead, since this was made."""

    def __init__(self, family: int, group: int) -> None:
        self._family = family
        self._sock = _socket()
        self._sock.setblocking(False)
        if group:
            self._sock.setsockopt(genetlink.SOL_NETLINK, genetlink.ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def read(self, index: int) -> bool:
        """Take what has come; return whether it says, or may have said, that the device's connection is dead."""
        dead = False
        while True:
            try:
                data = self._sock.recv(DATAGRAM)
            except BlockingIOError:
                return dead
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                dead = True  # announcements were lost
                continue
            for message in genetlink.messages(data):
                if message.type == self._family and message.command == genetlink.LINK_DEAD:
                    dead |= genetlink.number(message.attributes, genetlink.INDEX) == index


def _socket() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
    except OSError as error:
        raise Refused(f"generic netlink: {error.strerror}") from error
    sock.settimeout(ANSWER_LIMIT)
    sock.bind((0, 0))
    return sock
