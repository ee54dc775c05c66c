"""The supervisor of a process: nothing that breaks is a success, and no program holds it up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from labctl.ground.resources import PACKAGE, images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's processes")

PATIENCE = 30.0
SUPERVISED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import peer
log = peer.Log(peer.as_json)
{main}
sys.exit(peer.supervise(main, log, False))
"""


def supervised(main: str) -> tuple[int, list[dict[str, Any]]]:
    """The status of a supervisor whose main process does this, and what it says."""
    done = subprocess.run(
        [sys.executable, "-IS", "-c", SUPERVISED.format(main=main), str(images() / "peer")],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert not done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_what_breaks_in_a_main_process_is_told() -> None:
    status, said = supervised("def main(output):\n    ''.encode('utf-9')")
    broken = [event["text"] for event in said if event["kind"] == "broken"]
    assert broken == ["LookupError: unknown encoding: utf-9 (<string>:7)"]
    assert (said[-1]["phase"], said[-1]["exit"], status) == ("exit", 1, 1)


def test_a_call_that_breaks_is_no_success() -> None:
    calls = "peer.calls_main(peer.parse('socket'), log)\nimport program\nprogram.socket = None"
    status, said = supervised(f"main = {calls}")
    assert [event["kind"] for event in said] == ["process", "call", "broken", "process"]
    assert status == 1


def test_a_fork_that_is_refused_is_told() -> None:
    refused = "def fork():\n    raise BlockingIOError(11, 'Resource temporarily unavailable')"
    status, said = supervised(
        f"{refused}\nos.fork = fork\nmain = None\n"
        "sys.argv[1:] = ['calls', 'wait']\npeer.main()"
    )  # fmt: skip
    (broken,) = said
    assert broken["kind"] == "broken"
    assert "can't fork: Resource temporarily unavailable; a limit of processes" in broken["text"]
    assert status == 1


@pytest.mark.parametrize(
    "call", ["connect a..b:80", f"connect {'x' * 64}:80", "bind [fe80::1%é" + "x" * 70 + "]:80"]
)
def test_a_name_that_is_none_is_a_failed_call(call: str) -> None:
    status, said = supervised(f"main = peer.calls_main(peer.parse('socket tcp6; {call}'), log)")
    failed = next(event for event in said if event.get("errno"))
    assert (failed["errno"], status) == ("EAI_NONAME", 1)


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "KILL"), (34, "RTMIN"), (35, "RTMIN+1"), (64, "RTMAX"), (33, "RTMIN-1")],
)
def test_every_signal_has_a_name(number: int, name: str) -> None:
    status, said = supervised(
        f"def main(output):\n    os.kill(os.getpid(), {number})\n    while 1: pass"
    )
    assert (said[-1]["exit"], said[-1]["signal"], status) == (None, name, 128 + number)


def test_a_long_call_is_told_in_one_piece() -> None:
    text = "é" * 5000
    _, said = supervised(f"main = peer.calls_main(peer.parse('sleep 0 || continue # {text}'), log)")
    assert said
    _, said = supervised(f"main = peer.calls_main(peer.parse('socket; send \"{text}\"'), log)")
    for event in said:
        assert len(json.dumps(event)) < 4096
    assert [event["name"] for event in said if event.get("phase") == "done"] == ["socket", "send"]


# Under a user to whom Python's own files are closed nothing more can be loaded.
IMPORTS = """
import os, sys
sys.argv[1:], (world, agent, peer_file, tracer) = [], sys.argv[1:]
import importlib.util
spec = importlib.util.spec_from_file_location("world", world)
world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(world)
agent, peer, tracer = [world.load(path) for path in (agent, peer_file, tracer)]

def watch(event, arguments):
    if event == "import" and arguments[0] not in sys.modules:
        os.write(2, b"loads %s\\n" % arguments[0].encode())

sys.addaudithook(watch)
commands, to_peer = os.pipe()
if os.fork() == 0:
    os.dup2(commands, 0)
    os.close(to_peer)
    log = peer.Log(peer.as_json)
    main = peer.calls_main(peer.parse(os.environ["CALLS"]), log)
    if "RUN" in os.environ:
        main = peer.run_main(os.environ["RUN"].split(), {"A": "b"})
    os._exit(peer.supervise(main, log, "RUN" not in os.environ) or 0)
os.close(commands)
os.write(to_peer, os.environ["SAY"].encode() + b"\\n")
os.wait()
"""
CALLS = """\
socket; set SO_REUSEADDR; set TCP_CONGESTION nosuch || continue
bind localhost:0; listen 3; close listener || continue; socket tcp6
connect locälhost:1 || continue; connect nosuch:80 || continue; connect a..b:1 || continue
connect [::1]:1 || continue; send "é" || continue; recv || continue; sleep 50ms; await
"""
SAY = (
    """{"do": "call", "call": "socket; set SO_LINGER 1 0; bind :0; send 'x' || continue; exit 3"}"""
)


@pytest.mark.parametrize("run", [None, "echo x", "nosuch x"])
def test_nothing_is_loaded_once_a_process_is_somebody_elses(run: str | None) -> None:
    programs = ("host/agent.py", "peer/peer.py", "host/tracer.py")
    done = subprocess.run(
        [sys.executable, "-IS", "-c", IMPORTS, str(PACKAGE / "backends" / "netns" / "world.py"),
         *(str(images() / program) for program in programs)],
        env={**os.environ, "CALLS": CALLS, "SAY": SAY, **({"RUN": run} if run else {})},
        capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stderr == b""
    assert b'"phase": "start"' in done.stdout
    if not run:
        assert b'"exit": 3' in done.stdout


# --- Programs that write --------------------------------------------------------------------------


@contextmanager
def written_by(program: str, *after: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A supervisor of `python3 -c PROGRAM`, and the descriptor that it tells on."""
    command = [sys.executable, "-IS", str(images() / "peer" / "peer.py"), "--tether"]
    with subprocess.Popen(
        [*command, "run", "--", sys.executable, "-c", program, *after],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        try:
            yield process, process.stdout.fileno()
        finally:
            process.stdin.close()


def outputs(said: bytes) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, said.splitlines()) if e["kind"] == "output"]


def everything(program: str) -> list[dict[str, Any]]:
    with written_by(program) as (process, _):
        assert process.stdout
        return outputs(process.stdout.read())


def test_a_character_in_two_pieces_is_one() -> None:
    found = everything(
        "import os, time; os.write(1, b'caf\\xc3'); time.sleep(.3); os.write(1, b'\\xa9\\n')"
    )
    assert "".join(event["text"] for event in found) == "café\n"
    found = everything("import os; os.write(1, b'caf\\xc3')")
    assert "".join(event["text"] for event in found) == "caf\N{REPLACEMENT CHARACTER}"


def test_little_is_recorded_as_it_comes_and_much_by_its_end() -> None:
    found = everything("""
import os
line = b"x" * 99 + b"\\n"
os.write(1, b"first\\n")
for _ in range(3000):
    os.write(1, line * 100)
os.write(1, b"last\\n")
""")
    text = "".join(event["text"] for event in found)
    left_out = sum(event.get("left_out", 0) for event in found)
    assert text.startswith("first\n")
    assert text.endswith("x\nlast\n")
    assert len(text) + left_out == 3000 * 100 * 100 + len("first\nlast\n")
    assert left_out > 10_000_000
    assert 3_000_000 < sum(len(e["text"]) for e in found if "left_out" not in e) < 5_000_000


def test_many_pieces_cost_no_event_each() -> None:
    found = everything("import os\nfor _ in range(200_000): os.write(1, b'.')\n")
    assert "".join(event["text"] for event in found) == "." * 200_000
    assert len(found) < 10_000
    assert not any(event.get("left_out") for event in found)


def test_a_program_is_not_held_up_by_whoever_listens() -> None:
    """Nobody reads what the supervisor tells, and yet the program gets to its end in time."""
    program = """
import os, sys, time
for _ in range(2000):
    os.write(1, b"x" * 60000 + b"\\n")
open(sys.argv[1], "w").write("done")
os.write(1, b"done\\n")
time.sleep(600)
"""
    r, w = os.pipe()
    os.set_inheritable(w, True)
    with written_by(program, f"/proc/{os.getpid()}/fd/{w}") as (process, told):
        assert os.read(r, 4) == b"done"
        said, deadline = b"", time.monotonic() + PATIENCE
        while b"done" not in said:
            assert time.monotonic() < deadline
            said += os.read(told, 1 << 16)
        while not said.endswith(b"\n"):
            said += os.read(told, 1 << 16)
        last = outputs(said)[-1]
        assert last["text"].endswith("x\ndone\n")
        assert process.poll() is None
    os.close(r)
    os.close(w)


def test_the_end_is_told_although_a_child_goes_on_writing() -> None:
    program = """
import os
if os.fork() == 0:
    while True:
        os.write(1, b"child\\n" * 1000)
os.write(1, b"parent\\n")
"""
    with written_by(program) as (_, told):
        said, deadline = b"", time.monotonic() + PATIENCE
        while b'"phase": "exit"' not in said:
            assert time.monotonic() < deadline
            said += os.read(told, 1 << 16)


def test_a_thread_that_is_refused_is_told() -> None:
    refused = (
        'import threading\ndef start(self):\n    raise RuntimeError("can\'t start new thread")'
    )
    status, said = supervised(
        f"{refused}\nthreading.Thread.start = start\nmain = None\n"
        "sys.argv[1:] = ['calls', 'wait']\npeer.main()"
    )  # fmt: skip
    broken = [event for event in said if event["kind"] == "broken"]
    assert "can't start new thread; a limit of processes" in broken[-1]["text"]
    assert status == 1


def test_how_it_is_to_be_stopped_is_told() -> None:
    options = ("--watch=calls", "--stop=QUIT", "--grace=0.5")
    done = subprocess.run(
        [sys.executable, str(images() / "peer" / "peer.py"), "run", *options, "--", "true"],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    begun, *_ = map(json.loads, done.stdout.splitlines())
    assert (begun["stop"], begun["grace"], begun["watch"]) == ("QUIT", 0.5, "calls")
