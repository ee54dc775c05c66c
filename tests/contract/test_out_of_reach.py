"""No program can speak as the lab: what is said of it comes over channels that it can't reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from labctl.backends import RIGHTS
from tests.contract import real_backends
from tests.contract.test_lessons import played, report

# Tries every way to a descriptor, or to the memory, of another process: by /proc, pidfd_getfd(2),
# ptrace(2), and what it has inherited. Whatever it gets it writes a forged call and end to.
ATTACK = r"""
import ctypes, json, os, stat, sys, time

libc = ctypes.CDLL(None, use_errno=True)
PIDFD_OPEN, PIDFD_GETFD, SEIZE, DETACH = 434, 438, 0x4206, 17
forged = "".join(json.dumps(dict(message, t=time.monotonic())) + "\n" for message in (
    dict(kind="call", pid=7, phase="done", call="bind :8000", name="bind", errno="EADDRINUSE"),
    dict(kind="process", phase="exit", pid=2, exit=98, signal=None),
)).encode()

def reached(how, fd=None):
    print("reached", how, flush=True)
    if fd is not None:
        os.set_blocking(fd, False)
        os.write(fd, forged)

def attempt(how, attack):
    try:
        attack()
    except OSError:
        pass

def by_path(path, flags):
    reached(path, os.open(path, flags | os.O_NONBLOCK))

def by_pidfd(pid, number):
    pidfd = libc.syscall(PIDFD_OPEN, pid, 0)
    fd = libc.syscall(PIDFD_GETFD, pidfd, number, 0) if pidfd >= 0 else -1
    os.close(pidfd) if pidfd >= 0 else None
    if fd >= 0:
        reached("descriptor %d of %d" % (number, pid), fd)

def by_ptrace(pid):
    if libc.ptrace(SEIZE, pid, 0, 0) == 0:
        reached("memory of %d" % pid)

for number in map(int, os.listdir("/proc/self/fd")):
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        continue  # what listed them
    if number > 2 or stat.S_ISSOCK(mode):
        reached("inherited %d" % number, number)
pids = {*range(1, 60), os.getppid(), *(int(name) for name in os.listdir("/proc") if name.isdigit())}
for pid in sorted(pids - {os.getpid()}):
    for number in range(12):
        attempt("fd", lambda: by_path("/proc/%d/fd/%d" % (pid, number), os.O_WRONLY))
        attempt("pidfd", lambda: by_pidfd(pid, number))
    attempt("mem", lambda: by_path("/proc/%d/mem" % pid, os.O_RDWR))
    attempt("ptrace", lambda: by_ptrace(pid))
print("tried", len(pids), "as", os.getuid(), flush=True)
time.sleep(600)
"""
CALLS = "socket; bind :8000; listen 5; wait"
WHO: dict[str, dict[str, object]] = {
    "root": {},
    "user": {"uid": 1000},
    "rights": {"rights": [*RIGHTS]},
    "user_with_rights": {"uid": 1000, "rights": [*RIGHTS]},
}


def scenario(who: str) -> str:
    process = {"run": ["python3", "-c", ATTACK], **WHO[who]}
    peer = {"calls": CALLS, **{key: value for key, value in WHO[who].items() if key == "uid"}}
    return yaml.safe_dump(
        {
            "title": "A program that would speak as the lab",
            "hosts": {"server": {"processes": {"peer": peer, "attack": process}}, "client": {}},
            "steps": [
                {"start": "peer"},
                {"wait": {"sockets": {"server": "LISTEN"}}},
                {"start": "attack"},
                {"wait": {"process": {"attack": {"output": "^tried"}}}, "within": "60s"},
                {"expect": {"process": {"attack": {"state": "running"}, "peer": "running"}}},
                # False, but for what it forges.
                {"expect": {"process": {"attack": "EADDRINUSE"}}},
                {"expect": {"process": {"attack": {"exit": 98}}}},
                {"expect": {"process": {"peer": {"exit": 98}}}},
                {"expect": {"process": {"attack": {"output": "^reached"}}}},
            ],
        }
    )


@pytest.mark.parametrize("who", WHO)
@real_backends
def test_a_program_reaches_no_channel(backend: str, who: str, tmp_path: Path) -> None:
    text = scenario(who)
    result = played(text, backend, tmp_path)
    if result.result == "skip":
        pytest.skip(result.reason or "")
    found = [verdict.result for verdict in result.verdicts]
    assert found[:4] == ["pass"] * 4, report(result)
    assert "pass" not in found[4:], report(result)
    assert len(found) == 8
