"""Programs that call in ways that are seldom seen: what is told of them is right all the same."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from labctl.ground.resources import images
from tests.unit.test_syscalls import SERVER, calls, told, unseen, written

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's processes")

LIBC = """
import ctypes, os, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
"""


def test_unix_sockets_and_datagrams_are_left_alone() -> None:
    events = told("""
import os, socket
s = socket.socket(socket.AF_UNIX); s.bind(f"\\0odd-{os.getpid()}"); s.listen(3)
c = socket.socket(socket.AF_UNIX); c.connect(s.getsockname()); a, _ = s.accept()
a.shutdown(socket.SHUT_RDWR); a.close()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0))
u.connect(("127.0.0.1", 9)); print("all")
""")
    assert written(events) == "all\n"
    assert not calls(events)


def test_a_socket_that_another_process_hands_over() -> None:
    events = told("""
import os, socket
here, there = socket.socketpair()
if os.fork() == 0:
    s = socket.socket(); s.bind(("127.0.0.1", 0))
    socket.send_fds(there, [b"x"], [s.fileno()]); os._exit(0)
_, (fd,), _, _ = socket.recv_fds(here, 1, 1)
s = socket.socket(fileno=fd); s.listen(7); s.shutdown(socket.SHUT_RD); s.close(); os.wait()
""")
    main = events[0]["pid"]
    found = [e["call"] for e in events if e.get("phase") == "done" and e.get("pid") == main]
    assert found == ["listen 7", "shutdown rd", "close"]


def test_sockets_that_are_closed_by_other_calls_than_close() -> None:
    found = calls(
        told("""
import os, socket
a, b, c = socket.socket(), socket.socket(), socket.socket()
os.dup2(os.open(os.devnull, 0), a.fileno()); os.closerange(b.fileno(), c.fileno() + 1)
os._exit(0)
""")
    )
    assert found[3:] == ["close (by dup)", "close", "close"]


def test_a_thread_that_waited_before_there_were_sockets_closes_them() -> None:
    events = told(
        """
import queue, threading
given = queue.SimpleQueue()
def work():
    given.get().close()
worker = threading.Thread(target=work); worker.start()
import time
while open(f"/proc/self/task/{worker.native_id}/wchan").read()[:5] != "futex": time.sleep(0.01)
"""
        + SERVER
        + "given.put(s); del s; worker.join()"
    )
    assert calls(events) == ["socket tcp", "set SO_REUSEADDR 1", "bind 127.0.0.1:0", "listen 7",
                             "close"]  # fmt: skip


def test_a_call_that_signals_interrupt_and_the_kernel_begins_anew_is_one_call() -> None:
    events = told(
        LIBC
        + SERVER
        + """
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
if os.fork() == 0:
    time.sleep(0.5); c = socket.create_connection(s.getsockname()); os._exit(0)
print(libc.accept(s.fileno(), None, None) > 0)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    )
    assert written(events) == "True\n"
    accepts = [e["phase"] for e in events if e.get("name") == "accept"]
    assert accepts == ["enter", "done"]


def test_a_call_that_a_signal_interrupts_fails() -> None:
    events = told(
        LIBC
        + SERVER
        + """
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.1)
print(libc.accept(s.fileno(), None, None), ctypes.get_errno()); s.close()
"""
    )
    assert written(events) == "-1 4\n"
    assert calls(events)[-2:] == ["accept EINTR", "close"]


def test_an_interrupted_connect_goes_on_and_its_outcome_is_told() -> None:
    events = told(
        LIBC
        + """
import select
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(0)
first = socket.create_connection(s.getsockname())
more = socket.socket(); more.setblocking(False); more.connect_ex(s.getsockname())
signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.1)
c = socket.socket()
where = struct.pack("=H", 2) + struct.pack("!H", s.getsockname()[1]) + bytes([127, 0, 0, 1, *8*[0]])
print(libc.connect(c.fileno(), where, 16), ctypes.get_errno(), c.fileno())
s.accept(); s.accept(); select.select([], [c], [])
print(c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
print(libc.connect(c.fileno(), bytes(16), 16))
"""
    )
    how, outcome, gone = written(events).splitlines()
    fd = int(how.split()[2])
    assert (how, outcome, gone) == (f"-1 4 {fd}", "0", "0")
    mine = [e for e in events if e.get("fd") == fd and e["phase"] == "done"]
    assert [(e["name"], e.get("errno")) for e in mine][:3] == [
        ("socket", None), ("connect", None), ("disconnect", None)
    ]  # fmt: skip


def test_a_program_that_asks_again_how_its_connect_went_makes_one_call() -> None:
    events = told("""
import select, socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(0)
first = socket.create_connection(s.getsockname())
c = socket.socket(); c.setblocking(False)
asked = [c.connect_ex(s.getsockname()), c.connect_ex(s.getsockname())]
more = s.accept(), s.accept(); select.select([], [c], [])
print(*asked, c.connect_ex(s.getsockname()), c.fileno())
""")
    *how, fd = map(int, written(events).split())
    assert how == [errno.EINPROGRESS, errno.EALREADY, 0]
    mine = [e for e in events if e.get("fd") == fd and e["name"] == "connect"]
    assert [(e["phase"], e.get("errno")) for e in mine][:2] == [("enter", None), ("done", None)]


def test_a_socket_is_closed_with_the_last_of_its_descriptors() -> None:
    found = calls(
        told("import socket; a = socket.socket(); b = a.dup(); a.close(); b.listen(7); b.close()")
    )
    assert found == ["socket tcp", "listen 7", "close"]


def test_a_call_that_waits_in_vain_is_told_with_its_end() -> None:
    events = told(SERVER + "s.settimeout(None); import struct\n"
                  "s.setsockopt(1, 20, struct.pack('ll', 0, 200000))\n"
                  "try: s.accept()\nexcept BlockingIOError: print('EAGAIN')")  # fmt: skip
    assert written(events) == "EAGAIN\n"
    assert [(e["phase"], e.get("errno")) for e in events if e.get("name") == "accept"] == [
        ("enter", None), ("done", "EAGAIN")
    ]  # fmt: skip


def test_odd_arguments() -> None:
    found = calls(
        told(
            LIBC
            + """
c = socket.socket(); fd = c.fileno()
libc.connect(fd, b"\\1", 1); libc.connect(fd, ctypes.c_void_p(8), 16); libc.shutdown(fd, 99)
one = ctypes.create_string_buffer(b"\\1\\0\\0\\0", 64)
for length in (0, 1, 64): libc.setsockopt(fd, 1, 2, one, length)
libc.setsockopt(fd, 1, 2, ctypes.c_void_p(8), 4); libc.listen(fd, -1)
"""
        )
    )
    assert found[1:-1] == [
        "connect ? EINVAL", "connect ? EFAULT", "shutdown 99 EINVAL", "set SO_REUSEADDR ? EINVAL",
        "set SO_REUSEADDR 1 EINVAL", "set SO_REUSEADDR 1", "set SO_REUSEADDR ? EFAULT",
        "listen 2147483647",
    ]  # fmt: skip


OWN_FILTER = """
import os, struct, sys
sys.path.insert(0, {peer!r})
import filters
code = [(0x20, 0, 0, 0), (0x15, 0, 1, filters.MACHINES[os.uname().machine].numbers[{name!r}]),
        (6, 0, 0, {action}), (6, 0, 0, 0x7FFF0000)]
filters.confine(b"".join(struct.pack("=HBBI", *each) for each in code))
"""


def test_a_program_with_a_filter_of_its_own() -> None:
    peer = str(images() / "peer")
    wants_a_tracer = OWN_FILTER.format(peer=peer, name="futex", action=0x7FF00000)
    futex = 202 if os.uname().machine == "x86_64" else 98
    events = told(wants_a_tracer + LIBC + f"libc.syscall({futex}, 0, 0, 0)\nprint('all')")
    assert written(events) == "all\n"
    forbids = OWN_FILTER.format(peer=peer, name="close", action=0x500C8)
    events = told(LIBC + "c = socket.socket()\n" + forbids + "print(libc.close(c.fileno()))")
    assert written(events) == "-1\n"
    assert calls(events)[-1].endswith(" 200")


def test_calls_of_a_thread_that_its_first_thread_has_left() -> None:
    events = told(
        LIBC
        + """
import threading
first = threading.get_native_id()
def work():
    while open(f"/proc/self/task/{first}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(7); os._exit(3)
threading.Thread(target=work).start(); libc.pthread_exit(None)
""",
        status=3,
    )
    (listen,) = (e for e in events if e.get("name") == "listen" and e["phase"] == "done")
    assert (listen["local"] or "").startswith("127.0.0.1:")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a call of i386")
def test_a_call_of_another_machine_is_no_secret() -> None:
    events = told("""
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("53b867010000bb02000000b90100000031d2cd805bc3"))  # socket, by int $0x80
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print("all")
""")
    assert written(events) == "all\n"
    assert not calls(events)
    (reason,) = unseen(events)
    assert "another machine" in reason
