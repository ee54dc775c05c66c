"""What can be read of a process that is traced: its memory, and where its sockets are bound.

Standard library only, Python 3.6 or later.
"""

import ctypes
import errno
import os
import socket
import struct

PEEK_DATA, WORD = 2, 8
GET_SYSCALL_INFO, INFO_SIZE = 0x420E, 88
HEAD, CALL, RETURNED = struct.Struct("=B3xI2Q"), struct.Struct("=7Q"), struct.Struct("=qB")
PIDFD_OPEN, PIDFD_GETFD = 434, 438
MOST_LISTED = 1 << 13
"""How many bytes of /proc/net/tcp to look through for a socket's ends."""

PROTOCOLS = {b"TCP": socket.AF_INET, b"TCPv6": socket.AF_INET6, b"MPTCP": socket.AF_INET,
             b"MPTCPv6": socket.AF_INET6}  # fmt: skip

libc = ctypes.PyDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Info:
    """What the kernel tells of a system call at which a thread is stopped (linux/ptrace.h, struct
    ptrace_syscall_info)."""

    def __init__(self):
        self._data = ctypes.create_string_buffer(INFO_SIZE)

    def read(self, thread):
        """Reads it. Raises OSError: ESRCH if the thread was killed, others before Linux 5.3."""
        if libc.ptrace(GET_SYSCALL_INFO, thread, INFO_SIZE, self._data) <= 0:
            raise OSError(ctypes.get_errno(), "PTRACE_GET_SYSCALL_INFO")

    @property
    def op(self):
        """Whether the call begins (PTRACE_SYSCALL_INFO_ENTRY), returns, or what else."""
        return ord(self._data[0])

    @property
    def machine(self):
        """The machine whose call it is (linux/audit.h, AUDIT_ARCH_...)."""
        return HEAD.unpack_from(self._data)[1]

    def call(self):
        """Its number and its arguments, as it begins."""
        number, *arguments = CALL.unpack_from(self._data, HEAD.size)
        return number, arguments

    def value(self):
        """What it returned: below 0 an error."""
        value, failed = RETURNED.unpack_from(self._data, HEAD.size)
        return value if failed else max(value, 0)


def address_at(thread, pointer, length):
    """`HOST:PORT` of a struct sockaddr in the memory of a thread, or None."""
    data = memory(thread, pointer, min(length, 28))
    if data is None or len(data) < 8:
        return None
    family, port = struct.unpack_from("=H", data)[0], struct.unpack_from("!H", data, 2)[0]
    if family == socket.AF_INET:
        host = socket.inet_ntop(socket.AF_INET, data[4:8])
        return ":%d" % port if host == "0.0.0.0" else "%s:%d" % (host, port)
    if family == socket.AF_INET6 and len(data) >= 24:
        return "[%s]:%d" % (socket.inet_ntop(socket.AF_INET6, data[8:24]), port)
    return None


def memory(thread, address, length):
    """Bytes of a thread that is stopped, or None if they can't be read. By PTRACE_PEEKDATA, since
    engines forbid process_vm_readv(2) to containers without CAP_SYS_PTRACE."""
    if not address or not length:
        return None
    data = b""
    start = address & ~(WORD - 1)  # no word is in two pages
    while start + len(data) < address + length:
        ctypes.set_errno(0)
        word = libc.ptrace(PEEK_DATA, thread, start + len(data), None)
        if ctypes.get_errno():
            return None
        data += struct.pack("=q", word)
    return data[address - start : address - start + length]


def process_of(thread):
    """The process that a thread is of, and that process' parent (proc(5), Tgid and PPid)."""
    found = {}
    try:
        with open("/proc/%d/status" % thread) as file:
            found = dict(line.split(":", 1) for line in file)
    except OSError:
        pass  # it has ended
    return int(found.get("Tgid", thread)), int(found.get("PPid", 0))


def waits(thread, number):
    """Whether a thread is in the system call of that number (proc(5), /proc/pid/syscall)."""
    try:
        with open("/proc/%d/syscall" % thread) as file:
            return file.read().split()[0] == str(number)
    except OSError:
        return False


def inode_of(process, fd):
    """The inode of a socket, as text, or None."""
    try:
        target = os.readlink("/proc/%d/fd/%d" % (process, fd))
    except OSError:
        return None
    return target[8:-1] if target.startswith("socket:[") else None


def family_of(thread, fd):
    """The family of a TCP socket; 0 for what is none, None if that can't be seen (socket(7) names
    its protocol to getxattr(2))."""
    try:
        protocol = os.getxattr("/proc/%d/fd/%d" % (thread, fd), "system.sockprotoname")
    except OSError as exc:
        return None if exc.errno in (errno.EACCES, errno.EPERM) else 0
    return PROTOCOLS.get(protocol.rstrip(b"\0"), 0)


def copy_of(process, fd):
    """A copy of a process's socket, or None if engines or kernels before 5.6 forbid it."""
    pidfd = libc.syscall(PIDFD_OPEN, process, 0)
    if pidfd < 0:
        return None
    copy = libc.syscall(PIDFD_GETFD, pidfd, fd, 0)
    os.close(pidfd)
    return socket.socket(fileno=copy) if copy >= 0 else None


def ends_of(process, thread, fd, family):
    """The local and the remote address of a socket; None for one that can't be had. By a copy of
    its descriptor or, where engines forbid pidfd_getfd(2), by the beginning of the kernel's
    list."""
    copy = copy_of(process, fd)
    if copy:
        with copy:
            return _named(copy.getsockname), _named(copy.getpeername)
    inode = inode_of(thread, fd)
    if inode is None:
        return None, None
    with open("/proc/net/tcp6" if family == socket.AF_INET6 else "/proc/net/tcp", "rb") as file:
        listed = file.read(MOST_LISTED)
    for line in listed.split(b"\n")[1:]:
        words = line.split()
        if len(words) > 9 and words[9] == inode.encode():
            return _end(words[1]), _end(words[2])
    return None, None


def _named(ask):
    try:
        host, port = ask()[:2]
    except (OSError, ValueError):  # the second: it is of another family, by now
        return None
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


def _end(text):
    """An address of /proc/net/tcp (net/ipv4/tcp_ipv4.c, get_tcp4_sock), as calls report it."""
    host, port = text.decode().split(":")
    words = struct.unpack("!%dI" % (len(host) // 8), bytes.fromhex(host))
    data = struct.pack("=%dI" % len(words), *words)
    family = socket.AF_INET if len(data) == 4 else socket.AF_INET6
    shown = "%s:%d" if len(data) == 4 else "[%s]:%d"
    return shown % (socket.inet_ntop(family, data), int(port, 16))


def permission():
    """What helps where tracing is refused."""
    if _yama() > 1:
        return "set kernel.yama.ptrace_scope to 1"
    return "a seccomp profile or a security module forbids it; take the engine's default profile"


def attachable(thread, code):
    """Why a process that runs can't be attached to, with what helps; empty if it has ended."""
    found = {}
    try:
        with open("/proc/%d/status" % thread) as file:
            found = dict(line.split(":", 1) for line in file)
    except OSError:
        return ""
    if found["State"].split()[0] in "ZX" or int(found["TracerPid"]) == os.getpid():
        return ""
    if int(found["TracerPid"]):
        return "process %d traces it, and a process has one tracer" % int(found["TracerPid"])
    return "ptrace(2) is refused: %s; %s" % (os.strerror(code), _rights())


def _rights():
    scope = _yama()
    if scope > 2:
        return "kernel.yama.ptrace_scope is 3, and stays so until the machine starts again"
    if os.geteuid():
        return "run it as root" + (", or set kernel.yama.ptrace_scope to 0" if scope == 1 else "")
    return "a security module forbids it, or the right CAP_SYS_PTRACE is missing"


def _yama():
    """What Yama allows (Documentation/admin-guide/LSM/Yama.rst); 0 where there is none."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
