"""What the kernel says of a socket: values of options, what is queued, what it is ready for.

Standard library only, Python 3.6 or later.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import sys

from calls import ERRNOS
from options import FIELDS, IOCTLS, TEXT_OPTIONS, TIME_OPTIONS, option

LONGEST = 1024
EVENTS = (("in", select.POLLIN), ("out", select.POLLOUT), ("err", select.POLLERR),
          ("hup", select.POLLHUP), ("rdhup", 0x2000))  # fmt: skip
"""The words of poll(2), in the order in which they are told; 0x2000 is POLLRDHUP."""


def value_of(sock, name, field):
    """The value of an option, of a field of TCP_INFO, or of an ioctl, as text. Raises OSError."""
    if name in IOCTLS:
        return str(struct.unpack("i", fcntl.ioctl(sock, IOCTLS[name], bytes(4)))[0])
    data = sock.getsockopt(*option(name), LONGEST)
    if field:
        return str(_field(data, field))
    if name in TEXT_OPTIONS:
        return data.split(b"\0")[0].decode("ascii", "replace")
    if name in TIME_OPTIONS:
        seconds, micros = struct.unpack("ll", data)
        return "%g" % (seconds + micros / 1e6)
    numbers = struct.unpack("%di" % (len(data) // 4), data) if len(data) % 4 == 0 else data
    if name == "SO_ERROR" and numbers[0]:
        return ERRNOS.get(numbers[0], str(numbers[0]))
    return " ".join(map(str, numbers))


def _field(data, field):
    """A field of struct tcp_info; older kernels have fewer of them (ENOPROTOOPT)."""
    at, width = FIELDS[field]
    if at + width > 8 * len(data):
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
    whole = int.from_bytes(data[at // 8 : (at + width + 7) // 8], sys.byteorder)
    if width % 8:  # the first bits of a byte are its lowest, or its highest
        whole >>= at % 8 if sys.byteorder == "little" else 8 - at % 8 - width
    return whole & (1 << width) - 1


def ready(sock, wanted, seconds):
    """What a socket is ready for by now, or within so many seconds, if not without end: words of
    poll(2), or `none`."""
    known = dict(EVENTS, **{"in": select.POLLIN | 0x2000})
    poll = select.poll()
    poll.register(sock, sum(known[word] for word in wanted))
    found = poll.poll(None if seconds is None else seconds * 1000)
    events = found[0][1] if found else 0
    return " ".join(word for word, event in EVENTS if events & event) or "none"


def disconnect(sock):
    """Connects to AF_UNSPEC: ends a connection, and the socket can connect again (connect(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    if libc.connect(sock.fileno(), nowhere, len(nowhere)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def md5_key(address, key):
    """struct tcp_md5sig (linux/tcp.h), for a peer's address as socket.connect takes it."""
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    packed = socket.inet_pton(family, address[0])
    where = struct.pack("=H6x16s" if len(address) == 4 else "=H2x4s", family, packed)
    return struct.pack("128sBBHi80s", where, 0, 0, len(key), 0, key)
