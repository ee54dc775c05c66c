"""`labctl blame`: what holds a port, by what `ss` and /proc show."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from labctl.judge.holders import SHOWN, holders
from labctl.probes.sockets import parse_ss
from tests.fake import HEADER, tcp
from tests.played import Labctl

RESENDS = "timer:(on,200ms,3) ino:0"
"""A timer after which another segment goes out."""
HERE, THERE = "198.18.0.2:8000", "198.18.0.3:40000"


def held(*lines: str, **known: list[str]) -> list[tuple[str, int, tuple[str, ...]]]:
    found = holders(parse_ss("\n".join([HEADER, *lines])), {7: known.get("seven", [])})
    return [(holder.state, holder.count, holder.processes) for holder in found]


def test_nothing() -> None:
    assert held() == []


def test_what_blocks_most_comes_first_with_its_processes() -> None:
    listens = tcp("LISTEN", ":8000", more="ino:7")
    waits = tcp("TIME-WAIT", HERE, THERE, more="timer:(timewait,59sec,0)")
    assert held(waits, listens, seven=["nginx (pid 1)", "nginx (pid 2)"]) == [
        ("LISTEN", 1, ("nginx (pid 1)", "nginx (pid 2)")),
        ("TIME-WAIT", 1, ()),
    ]


def test_of_many_a_few_are_shown() -> None:
    lines = [tcp("TIME-WAIT", HERE, f"198.18.0.3:{n}") for n in range(1, 10)]
    (found,) = holders(parse_ss("\n".join([HEADER, *lines])), {})
    assert (found.count, len(found.sockets)) == (9, SHOWN)


def test_how_long_it_lasts_is_said_of_what_ends_by_itself() -> None:
    timer = "timer:(timewait,4.500sec,0) ino:0"
    ends = holders(parse_ss(f"{HEADER}\n{tcp('FIN-WAIT-2', HERE, THERE, more=timer)}"), {})
    stays = holders(parse_ss(f"{HEADER}\n{tcp('FIN-WAIT-2', HERE, THERE, more='ino:7')}"), {})
    dies = holders(parse_ss(f"{HEADER}\n{tcp('FIN-WAIT-1', HERE, THERE, more=RESENDS)}"), {})
    assert (
        "in 4 s there is none left; but if its peer closes before, it is in TIME-WAIT for 60 s "
        in (ends[0].blocks)
    )
    assert "it ends by itself" not in dies[0].blocks
    assert "it ends by itself" not in stays[0].blocks


def test_a_connection_to_itself() -> None:
    (found,) = holders(parse_ss(f"{HEADER}\n{tcp('ESTAB', HERE, HERE, more='ino:7')}"), {})
    assert "ip_local_reserved_ports" in found.cure


@pytest.mark.netns
def test_a_real_port() -> None:
    """In a network namespace of its own: a listener, and the process that has it."""
    script = (
        "import socket, subprocess, sys\n"
        "s = socket.create_server(('', 8000))\n"
        "b = socket.socket(); b.bind(('127.0.0.1', 8002))\n"
        "sys.exit(subprocess.run([sys.executable, '-m', 'labctl', *sys.argv[1:]]).returncode)"
    )
    inside = ["unshare", "-n" if os.geteuid() == 0 else "-rn"]

    def blame(port: int) -> tuple[int, list[dict[str, object]]]:
        command = [*inside, sys.executable, "-c", script, "blame", str(port), "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout)

    status, (found,) = blame(8000)
    assert (status, found["state"]) == (1, "LISTEN")
    assert "create_server" in str(found["processes"])
    assert blame(8001) == (0, [])
    status, (bound,) = blame(8002)
    assert (status, bound["state"], bound["cure"]) == (1, "UNCONN", "close it")


def test_a_port_that_there_is_not(labctl: Labctl) -> None:
    for text in ("http", "0", "65536"):
        assert labctl("blame", text)[2].endswith(f"{text!r} is no port; allowed: 1 to 65535\n")


def test_no_ss(labctl: Labctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    status, _, err = labctl("blame", "8000")
    assert status == 3
    assert "ss can't be run: " in err and "install the package iproute2" in err


def test_a_container_without_an_engine(labctl: Labctl) -> None:
    status, _, err = labctl("blame", "8000", "--container", "web")
    assert status == 3
    assert "no Docker engine answers" in err
