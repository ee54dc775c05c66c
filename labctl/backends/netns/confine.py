"""What a lab sees of this machine: the system, read-only, and folders of its own.

    /            as it is, read-only and without devices
    /tmp, /run   empty, of its own, in memory; and so are /var/tmp and /dev/shm
    /var         a copy of its own, in memory
    /dev         null, zero, full, random, urandom, tty and a pts of its own
    /proc        of its own processes; of /proc/sys only net can be written

There it also sees, read-only, the current folder and what PATH needs. It can't make user
namespaces, in which some of this would not hold, nor see the kernel's keyrings.

It is loaded by world.py and uses the standard library alone, Python 3.9 or later. Needs a mount
namespace of its own, in which nothing is shared. See mount(2), proc(5), and for /proc the list of
paths that container engines protect (linux.readonlyPaths of the OCI runtime specification).
"""

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
KEPT_FLAGS = {"nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
"""What stays when a mount becomes read-only: others may not be able to give that up."""
COVERED = (errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.EACCES)
"""A mount point that another mount hides, or in a folder that is closed to us: nobody of the lab
can reach what is there."""
OWN = {
    "/tmp": "mode=1777,size=256m",
    "/var/tmp": "mode=1777,size=256m",
    "/run": "mode=755,size=64m",
    "/dev/shm": "mode=1777,size=256m",
}
COPIED = ("/var",)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
         "ptmx": "pts/ptmx"}  # fmt: skip
PROTECTED = ("bus", "fs", "irq", "sysrq-trigger", "sys")
"""What a process of root could write to below /proc, without any capability."""

CLONE_NEWUSER = 0x10000000
LOAD, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # or an errno
CALLS = {  # unshare, clone; clone3; keyctl, add_key, request_key: asm/unistd.h
    "x86_64": {
        0xC000003E: (272, 56, 435, 250, 248, 249),
        0x40000003: (310, 120, 435, 288, 286, 287),
    },
    "aarch64": {
        0xC00000B7: (97, 220, 435, 219, 217, 218),
        0x40000028: (337, 120, 435, 311, 309, 310),
    },
}
"""By machine and by architecture (linux/audit.h), of 64 and of 32 bits."""

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


def protect(path: str) -> None:
    """Nobody can write to a mount any more."""
    mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def proc() -> None:
    """A /proc of this PID namespace, of which only /proc/sys/net can be written."""
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    bind("/proc/sys/net", "/proc/sys/net")
    for name in PROTECTED:
        path = f"/proc/{name}"
        with suppress(FileNotFoundError):  # this kernel has none
            bind(path, path, MS_REC)  # with net, which stays as it is
            mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)


def calls() -> bytes:
    """A seccomp filter (struct sock_filter[]) that refuses user namespaces and keyrings; nothing on
    machines whose calls nobody has written down here. glibc does without clone3."""
    code: list[tuple[int, int, int, int]] = [(LOAD, 0, 0, 4)]
    for architecture, (unshare, clone, clone3, *keys) in CALLS.get(os.uname().machine, {}).items():
        block = [(LOAD, 0, 0, 0)]
        block += [
            (JUMP_EQUAL, 6, 0, unshare),
            (JUMP_EQUAL, 5, 0, clone),
            (JUMP_EQUAL, 7, 0, clone3),
        ]
        block += [(JUMP_EQUAL, 7 - n, 0, key) for n, key in enumerate(keys)]
        block += [(RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 16), (JUMP_SET, 2, 0, CLONE_NEWUSER)]
        block += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
        block += [(RETURN, 0, 0, REFUSE | errno.EPERM)]
        code += [(JUMP_EQUAL, 0, len(block), architecture), *block]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def devices() -> None:
    """A /dev of the lab's own, to which nobody can add and from which nobody can take."""
    with opened([f"/dev/{name}" for name in DEVICES]) as there:
        mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=1m")
        for name, device in there.items():
            os.close(os.open(name, os.O_CREAT, 0o666))
            bind(device, name)
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    with suppress(OSError):  # not all kernels have it, and few programs need it
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666")
    mount("", "/dev", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)


def system(path: str, folder: str) -> None:
    """Makes what there is read-only, but for /proc and /dev, without devices, and gives the lab
    folders of its own. `path` is PATH, and `folder` the current one, where this process is
    afterwards."""
    devices()
    for target, flags in list(mounts()):
        try:
            mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV | flags)
        except OSError as exc:
            if exc.errno not in COVERED:
                raise
    own(path, folder)


def own(path: str, folder: str, copies: "Iterable[str]" = ()) -> None:
    """Folders that nobody else has, with what `system` leaves there, and copies of some."""
    real = {name: os.path.realpath(name) for name in needed(path, folder)}
    found = set(real.values())
    kept = [name for name in found if not any(name.startswith(f"{other}/") for other in found)]
    above = {}
    for each in (each for name in kept for each in parents(name)):
        with suppress(OSError):
            above[each] = os.stat(each)
    with opened(kept) as sources:
        for target in copies:
            copy(target)
        for target, data in OWN.items():
            if os.path.isdir(target):
                mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, data)
        for name, stat in sorted(above.items()):
            again(name, stat)
        for name, source in sources.items():
            with suppress(OSError):  # what can't be had here is not there
                os.mkdir(name)
                bind(source, name, MS_REC)
    for name, there in real.items():
        with suppress(OSError):
            if not os.path.lexists(name):  # it was a symbolic link, or below one
                os.makedirs(os.path.dirname(name), exist_ok=True)
                os.symlink(there, name)
    try:
        os.chdir(folder)
    except OSError:
        os.chdir("/")


def copy(target: str) -> None:
    """A copy of a folder that the lab may change, in memory: servers have their logs and their data
    there. Where the kernel has no such mounts, it stays read-only. See overlayfs in the kernel's
    documentation."""
    made = "upperdir=/tmp/upper,workdir=/tmp/work"
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=256m")  # hidden at once
    for name in ("/tmp/upper", "/tmp/work"):
        os.mkdir(name, 0o755)
    for more in ("", ",userxattr"):  # the second in user namespaces, since Linux 5.11
        with suppress(OSError):
            flags = MS_NOSUID | MS_NODEV
            mount("overlay", target, "overlay", flags, f"lowerdir={target},{made}{more}")
            return


def parents(name: str) -> "list[str]":
    """The folders between one of OWN and this one."""
    below = next(target for target in OWN if name.startswith(f"{target}/"))
    found = []
    while (name := os.path.dirname(name)) != below:
        found.append(name)
    return found


def again(name: str, stat: os.stat_result) -> None:
    """An empty folder that opens to the same users as one did."""
    with suppress(OSError):
        os.mkdir(name)
        os.chmod(name, stat.st_mode & 0o7777)
        os.chown(name, stat.st_uid, stat.st_gid)  # in a user namespace some have no number


def here() -> str:
    """The current folder, or the root if that is gone."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def needed(path: str, folder: str) -> "list[str]":
    """The folders that programs need, if they are below OWN: the current one, and those on PATH
    with what lies beside them (bin/ and lib/)."""
    wanted = [folder]
    for entry in filter(os.path.isabs, path.split(":")):
        parent = os.path.dirname(os.path.normpath(entry))
        wanted.append(entry if parent in OWN else parent)
    below = tuple(f"{name}/" for name in OWN)
    found = []
    for name in dict.fromkeys(map(os.path.normpath, wanted)):
        with suppress(OSError):
            if os.path.realpath(name).startswith(below) and os.path.isdir(name):
                found.append(name)
    return found


@contextmanager
def opened(names: "Iterable[str]") -> "Iterator[dict[str, str]]":
    """Other names of those that exist, good also when their own are hidden."""
    descriptors = {}
    for name in names:
        with suppress(OSError):
            descriptors[name] = os.open(name, os.O_PATH)
    try:
        yield {name: f"/proc/self/fd/{number}" for name, number in descriptors.items()}
    finally:
        for number in descriptors.values():
            os.close(number)


def mounts() -> "Iterator[tuple[str, int]]":
    """The mounts outside /proc and /dev, and flags of theirs. What the automounter has not mounted
    stays away."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file.read().strip().split(b"\n"):
            head, _, tail = line.partition(b" - ")
            where, options = head.split(b" ")[4:6]
            name = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), where)
            target, words = os.fsdecode(name), options.decode().split(",")
            if not tail.startswith(b"autofs ") and not f"{target}/".startswith(("/proc/", "/dev/")):
                yield target, sum(KEPT_FLAGS.get(word, 0) for word in words)
