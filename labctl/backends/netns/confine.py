"""What a lab sees of this machine: the system, read-only, and folders of its own.

    /            as it is, read-only
    /tmp, /run   empty, of its own, in memory
    /dev         null, zero, full, random, urandom, tty, a pts and a shm of its own
    /proc        of its own processes; of /proc/sys only net can be written

Below /tmp and /run it also sees, read-only, the current folder and what PATH needs.

It is loaded by world.py and uses the standard library alone, Python 3.9 or later. Needs a mount
namespace of its own, in which nothing is shared. See mount(2), proc(5), and for /proc the list of
paths that container engines protect (linux.readonlyPaths of the OCI runtime specification).
"""

import ctypes
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
KEPT_FLAGS = {"nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
"""What stays when a mount becomes read-only: others may not be able to give that up."""
COVERED = (errno.EINVAL, errno.ENOENT, errno.ENOTDIR)
"""A mount point that another mount hides: nobody can reach what is there."""
OWN = {"/tmp": "mode=1777,size=256m", "/run": "mode=755,size=64m"}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
         "ptmx": "pts/ptmx"}  # fmt: skip
PROTECTED = ("bus", "fs", "irq", "sysrq-trigger", "sys")
"""What a process of root could write to below /proc, without any capability."""

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    texts = [os.fsencode(text) or None for text in (source, target, kind, data)]
    if libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {target}: {os.strerror(code)}")


def bind(source: str, target: str, more: int = 0) -> None:
    """The same thing at another place."""
    mount(source, target, "", MS_BIND | more)


def proc() -> None:
    """A /proc of this PID namespace, of which only /proc/sys/net can be written."""
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    bind("/proc/sys/net", "/proc/sys/net")
    for name in PROTECTED:
        path = f"/proc/{name}"
        with suppress(FileNotFoundError):  # this kernel has none
            bind(path, path, MS_REC)  # with net, which stays as it is
            mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)


def system(path: str, folder: str) -> None:
    """Makes what there is read-only, but for /proc, and gives the lab folders of its own. `path` is
    PATH, and `folder` the current one, where this process is afterwards."""
    for target, flags in list(mounts()):
        try:
            mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | flags)
        except OSError as exc:
            if exc.errno not in COVERED:
                raise
    with opened(f"/dev/{name}" for name in DEVICES) as devices:
        mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=1m")
        for name, device in devices.items():
            os.close(os.open(name, os.O_CREAT, 0o666))
            bind(device, name)
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/pts")
    with suppress(OSError):  # not all kernels have it, and few programs need it
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666")
    os.mkdir("/dev/shm")
    own(path, folder)


def here() -> str:
    """The current folder, or the root if that is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def own(path: str, folder: str) -> None:
    """Folders that nobody else has, with what `system` leaves there."""
    with opened(needed(path, folder)) as kept:
        for target, data in OWN.items():
            mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, data)
        mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, OWN["/tmp"])
        for name, there in kept.items():
            os.makedirs(name, exist_ok=True)
            bind(there, name)
    try:
        os.chdir(folder)
    except OSError:
        os.chdir("/")


def needed(path: str, folder: str) -> "list[str]":
    """The folders below OWN that programs need: the current one, and those on PATH with what lies
    beside them (bin/ and lib/)."""
    wanted = [folder]
    for entry in filter(os.path.isabs, path.split(":")):
        parent = os.path.dirname(os.path.normpath(entry))
        wanted.append(entry if parent in OWN else parent)
    below = tuple(f"{name}/" for name in OWN)
    return [name for name in map(os.path.normpath, wanted) if name.startswith(below)]


@contextmanager
def opened(names: "Iterable[str]") -> "Iterator[dict[str, str]]":
    """Other names of those that exist, good also when their own are hidden."""
    descriptors = {}
    for name in names:
        with suppress(FileNotFoundError, NotADirectoryError):
            descriptors[name] = os.open(name, os.O_PATH)
    try:
        yield {name: f"/proc/self/fd/{number}" for name, number in descriptors.items()}
    finally:
        for number in descriptors.values():
            os.close(number)


def mounts() -> "Iterator[tuple[str, int]]":
    """The mounts outside /proc that can be written, and flags of theirs. What the automounter has
    not mounted stays away."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file.read().splitlines():
            head, _, tail = line.partition(b" - ")
            where, options = head.split(b" ")[4:6]
            name = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), where)
            target, words = os.fsdecode(name), options.decode().split(",")
            if tail.startswith(b"autofs ") or target == "/proc" or target.startswith("/proc/"):
                continue
            if "ro" not in words:
                yield target, sum(KEPT_FLAGS.get(word, 0) for word in words)
