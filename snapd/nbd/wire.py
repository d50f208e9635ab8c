"""The NBD protocol's numbers and structures, all big-endian.

From ``doc/proto.md`` of https://github.com/NetworkBlockDevice/nbd; names are the document's, without
``NBD_``. The comment after a group names the section it is from.
"""

from __future__ import annotations

import errno
from struct import Struct

# "Newstyle negotiation"
INIT_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
REPLY_MAGIC = 0x3E889045565A9

FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2

# "Option types"
OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

# "Option reply types"
REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31
REP_ERR_UNSUP = REP_ERROR + 1
REP_ERR_INVALID = REP_ERROR + 3
REP_ERR_UNKNOWN = REP_ERROR + 6
REP_ERR_TOO_BIG = REP_ERROR + 9

INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

# "Transmission flags"
HAS_FLAGS = 1
READ_ONLY = 1 << 1
SEND_FLUSH = 1 << 2
SEND_FUA = 1 << 3
SEND_TRIM = 1 << 5
SEND_WRITE_ZEROES = 1 << 6
SEND_DF = 1 << 7
CAN_MULTI_CONN = 1 << 8

# "Request types"
CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

# "Command flags"
CMD_FLAG_FUA = 1
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3

# "Request message", "Simple reply message", "Structured reply chunk message"
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

REPLY_FLAG_DONE = 1
REPLY_TYPE_OFFSET_DATA = 1
REPLY_TYPE_BLOCK_STATUS = 5
REPLY_TYPE_ERROR = (1 << 15) + 1

MAX_STRING = 4096
"""Bytes of a name or a query ("String")."""

MAX_REQUEST = 32 * 1024 * 1024
"""Bytes of a READ or WRITE: what a client may use that does not ask for block sizes ("Block size constraints")."""

GREETING = Struct(">QQH")  # init magic, option magic, handshake flags
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # option magic, option, length
OPTION_REPLY = Struct(">QIII")  # reply magic, option, reply type, length
EXPORT_SIZE = Struct(">QH")  # size, transmission flags
INFO_EXPORT_REPLY = Struct(">HQH")  # INFO_EXPORT, size, transmission flags
INFO_BLOCK_SIZE_REPLY = Struct(">HIII")  # INFO_BLOCK_SIZE, minimum, preferred, maximum
U16 = Struct(">H")
U32 = Struct(">I")

REQUEST = Struct(">IHH8sQI")  # magic, flags, type, cookie, offset, length
SIMPLE_REPLY = Struct(">II8s")  # magic, error, cookie
CHUNK = Struct(">IHH8sI")  # magic, flags, type, cookie, length of what follows
DATA_CHUNK = Struct(">IHH8sIQ")  # CHUNK, offset; then the data
ERROR_CHUNK = Struct(">IHH8sIIH")  # CHUNK, error, length of the message (none is sent)
STATUS_CHUNK = Struct(">IHH8sIIII")  # CHUNK, context id, one extent: length, flags

ALLOCATION = "base:allocation"
"""The only metadata context here; extents are always 0: "allocated, or the server could not otherwise determine"."""

# "Error values"
_ON_THE_WIRE = frozenset(
    (errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOVERFLOW, errno.ENOTSUP, errno.ESHUTDOWN)
)
_TRANSLATED = {
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
    errno.EROFS: errno.EPERM,
    errno.EACCES: errno.EPERM,
}


def error_on_the_wire(error: int) -> int:
    """Return the NBD error that says ``error`` (a positive errno) best; EIO for what NBD has no word for."""
    return error if error in _ON_THE_WIRE else _TRANSLATED.get(error, errno.EIO)


class Drop(Exception):
    """The peer broke the protocol in a way that leaves no common ground: close the connection, answer nothing."""
