"""Error numbers: what a name stands for here and elsewhere.

The names are POSIX's, the numbers are each system's own: <asm-generic/errno.h> on Linux,
<sys/errno.h> on macOS and the BSDs.
"""

from __future__ import annotations

LINUX = {
    "EPERM": 1, "ENOENT": 2, "EINTR": 4, "EBADF": 9, "EAGAIN": 11, "ENOMEM": 12, "EACCES": 13,
    "EFAULT": 14, "ENODEV": 19, "EINVAL": 22, "ENFILE": 23, "EMFILE": 24, "EROFS": 30, "EPIPE": 32,
    "EDOM": 33, "ERANGE": 34, "ENONET": 64,
    "EPROTO": 71, "ENOTSOCK": 88, "EDESTADDRREQ": 89, "EMSGSIZE": 90, "ENOPROTOOPT": 92,
    "EPROTONOSUPPORT": 93,
    "EOPNOTSUPP": 95, "EAFNOSUPPORT": 97, "EADDRINUSE": 98, "EADDRNOTAVAIL": 99,
    "ENETDOWN": 100, "ENETUNREACH": 101, "ENETRESET": 102, "ECONNABORTED": 103,
    "ECONNRESET": 104, "ENOBUFS": 105, "EISCONN": 106, "ENOTCONN": 107, "ESHUTDOWN": 108,
    "ETIMEDOUT": 110, "ECONNREFUSED": 111, "EHOSTDOWN": 112, "EHOSTUNREACH": 113,
    "EALREADY": 114, "EINPROGRESS": 115,
}  # fmt: skip
BSD = {
    "EAGAIN": 35, "EINPROGRESS": 36, "EALREADY": 37, "ENOTSOCK": 38, "EDESTADDRREQ": 39,
    "EMSGSIZE": 40, "EPROTONOSUPPORT": 43,
    "ENOPROTOOPT": 42, "EOPNOTSUPP": 45, "EAFNOSUPPORT": 47, "EADDRINUSE": 48,
    "EADDRNOTAVAIL": 49, "ENETDOWN": 50, "ENETUNREACH": 51, "ENETRESET": 52,
    "ECONNABORTED": 53, "ECONNRESET": 54, "ENOBUFS": 55, "EISCONN": 56, "ENOTCONN": 57,
    "ESHUTDOWN": 58, "ETIMEDOUT": 60, "ECONNREFUSED": 61, "EHOSTDOWN": 64, "EHOSTUNREACH": 65,
}  # fmt: skip
MACOS = {"EOPNOTSUPP": 102}
"""Numbers in which macOS differs from the BSDs."""
LOOKUP_FAILED = "EAI_NONAME"
"""What getaddrinfo(3) says of an unknown name: a failure of connect and bind without an errno."""

NAMES = (*LINUX, LOOKUP_FAILED)


def describe(name: str) -> str:
    """`EADDRINUSE (98 on Linux, 48 on macOS and the BSDs)`; only the name if no number is known."""
    here, there = LINUX.get(name), BSD.get(name)
    if here is None:
        return name
    if there is None or there == here:
        return f"{name} ({here})"
    if name in MACOS:
        return f"{name} ({here} on Linux, {MACOS[name]} on macOS, {there} on the BSDs)"
    return f"{name} ({here} on Linux, {there} on macOS and the BSDs)"


def bare(words: str) -> str:
    """Words with the names of errors and without what `describe` says of their numbers."""
    for name in NAMES:
        words = words.replace(describe(name), name)
    return words
