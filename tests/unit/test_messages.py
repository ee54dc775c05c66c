"""Nothing is taken for a message that is none, whoever said it; and it is no traceback."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.backends import Message, protocol, wire
from labctl.backends.netns.backend import SocketChannel
from labctl.backends.wire import NoMessage
from labctl.lab.happened import happened
from tests.fake import FakeBackend, play

LESSON = """\
title: A process, and what is said in its stead
hosts:
  server: {run: server}
  client: {}
steps:
  - start: server
  - sleep: 50ms
  - expect: {process: {server: running}}
"""
CALL = {"kind": "call", "pid": 7, "phase": "done", "call": "bind :80", "name": "bind"}


@pytest.mark.parametrize(
    "line",
    [
        b"not json", b"", b"3", b"null", b"[]", b'"kind"', b"{}", b'{"kind": 3}', b'{"kind": null}',
        b'{"kind": "process", "t": NaN}', b'{"kind": "process"', b"\xff\xfe", b"[" * 100_000,
        b'{"kind": "process", "pid": ' + b"9" * 10_000 + b"}",
        b'{"kind": "output", "text": "\\ud800"}', b'{"kind": "output", "text": "\xed\xa0\x80"}',
    ],
)  # fmt: skip
def test_lines_that_are_none(line: bytes) -> None:
    with pytest.raises(NoMessage) as caught:
        wire.read(line)
    assert len(str(caught.value)) < 300


PROCESS_SAYS: list[Message] = [
    {"kind": "verdict", "result": "pass"},
    {"kind": "process"},
    {"kind": "process", "phase": "start", "pid": 2, "t": "now"},
    {"kind": "process", "phase": "start", "pid": 2, "t": True},
    {"kind": "process", "phase": "begin", "pid": 2},
    {"kind": "process", "phase": "start", "pid": "2"},
    {"kind": "process", "phase": "start", "pid": 2, "more": 1},
    {"kind": "process", "phase": "exit", "pid": 2, "exit": 1.5},
    {"kind": "output"},
    {"kind": "output", "text": ["a"]},
    {**CALL, "pid": None},
    {**CALL, "errno": 98},
    {**CALL, "name": {}},
    {**CALL, "subject": []},
    {"kind": "step", "index": 0, "phase": "end", "text": "x", "outcome": "done"},
    {"kind": "hello", "wall": 1.0, "counters": {}, "kernel": "6"},
    {"kind": "reply", "id": 1},
]


@pytest.mark.parametrize("message", PROCESS_SAYS)
def test_what_a_process_said(message: Message, tmp_path: Path) -> None:
    def act(lab: FakeBackend) -> None:
        lab._processes["server"].say(**{"t": lab.time(), **message})

    check_error(act, tmp_path, "process server ")


AGENT_SAYS: list[Message] = [
    {"kind": "verdict", "t": 1.0},
    {"kind": "sockets", "t": 1.0},
    {"kind": "sockets", "t": None, "cause": "look", "text": "", "counters": {}},
    {"kind": "sockets", "t": 1.0, "cause": "look", "text": "", "counters": {"a": "b"}},
    {"kind": "packets", "t": 1.0, "data": "%"},
    {"kind": "packets", "t": 1.0},
    {"kind": "trouble", "t": 1.0, "probe": "ss"},
    {"kind": "loss", "t": 1.0, "drop": "0", "data": ""},
    {"kind": "hello", "t": 1.0},
    {"kind": "reply", "t": 1.0},
    {"kind": "reply", "id": [], "t": 1.0},
    {"kind": "process", "t": 1.0, "phase": "start", "pid": 2},
]


@pytest.mark.parametrize("message", AGENT_SAYS)
def test_what_an_agent_said(message: Message, tmp_path: Path) -> None:
    def act(lab: FakeBackend) -> None:
        lab._hosts["server"].channel.say(**message)

    check_error(act, tmp_path, "the agent of host server ")


TRACER_SAYS: list[Message] = [
    {"kind": "verdict", "t": 1.0},
    {"kind": "state", "t": 1.0},
    {"kind": "state", "t": 1.0, "local": "9.9.9.9:1", "remote": "", "old": "", "new": ""},
    {"kind": "state", "t": 1.0, "local": "198.18.0.2:1", "remote": 3, "old": "", "new": ""},
    {"kind": "refused"},
    {"kind": "reply"},
    {"kind": "trouble", "t": 1.0},
]


@pytest.mark.parametrize("message", TRACER_SAYS)
def test_what_the_tracer_said(message: Message, tmp_path: Path) -> None:
    check_error(lambda lab: lab.tracer.say(**message), tmp_path, "the tracer ")


def check_error(act: Callable[[FakeBackend], object], tmp_path: Path, who: str) -> None:
    result = play(LESSON, FakeBackend({"start server": act}), tmp_path)
    assert result.result == "error"
    assert result.reason is not None
    assert result.reason.startswith(who + "said what is no message")
    assert "\n" not in result.reason


@pytest.mark.parametrize("do", ["flush", "look", "setup"])
def test_answers_that_do_not_fit(do: str, tmp_path: Path) -> None:
    class Backend(FakeBackend):
        def _obey(self, name: str, message: Message) -> None:
            if message["do"] != do or (name, self._kernel) != ("server", "6.1.0-fake"):
                super()._obey(name, message)
                return
            answer = {"dropped": "none", "lost": {}, "capture": 3, "t": "now"}
            self._hosts[name].channel.say(kind="reply", id=message["id"], **answer)

    result = play(LESSON, Backend(), tmp_path)
    assert result.result == "error"
    assert "the agent of host server said what is no message" in str(result.reason)


def test_what_broke_in_a_process_or_an_agent(tmp_path: Path) -> None:
    def peer(lab: FakeBackend) -> None:
        lab.say("server", kind="broken", text="UnicodeError: label too long")

    result = play(LESSON, FakeBackend({"start server": peer}), tmp_path)
    assert (result.result, result.reason) == (
        "error", "process server broke: UnicodeError: label too long"
    )  # fmt: skip

    def agent(lab: FakeBackend) -> None:
        lab._hosts["client"].channel.say(kind="broken", t=lab.time(), text="MemoryError: ")

    result = play(LESSON, FakeBackend({"start server": agent}), tmp_path)
    assert (result.result, result.reason) == (
        "error", "the agent of host client broke: MemoryError: "
    )  # fmt: skip


def test_a_tracer_that_breaks_is_a_probe_that_sees_no_more(tmp_path: Path) -> None:
    def tracer(lab: FakeBackend) -> None:
        lab.tracer.say(kind="broken", t=lab.time(), text="ValueError: x")
        lab.tracer.close()

    result = play(LESSON, FakeBackend({"start server": tracer}), tmp_path)
    assert result.result == "pass"
    (trouble,) = {t.text for t in result.history.trouble.values()}
    assert trouble == "the tracer broke: ValueError: x"


def test_a_channel_of_garbage() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"kind": "output", "t": 1, "text": "x"}\nnot json\n')
    theirs.close()
    channel = iter(SocketChannel(ours))
    assert next(channel)["text"] == "x"
    with pytest.raises(NoMessage, match="not json"):
        next(channel)
    ours.close()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["phase", "pid", "exit", "signal", "call", "name", "errno", "text", "cause", "counters"]
) | st.text(max_size=5)  # fmt: skip
KINDS = st.sampled_from(["process", "call", "output", "sockets", "trouble", "loss", "state", "x"])


@given(KINDS, st.dictionaries(KEYS, values, max_size=6))
def test_anything_fits_or_is_no_message(kind: str, message: dict[str, Any]) -> None:
    said = {"kind": kind, "t": 1.0, **message}
    for program, where in (
        (protocol.AGENT, {"host": "server"}),
        (protocol.TRACER, {"host": "server"}),
        (protocol.SUPERVISOR, {"host": "server", "process": "server"}),
    ):
        try:
            found = program.heard(said)
        except NoMessage:
            continue
        json.loads(happened(found, 1.0, **where).to_json())
    for reader in (wire.asked, protocol.Exec("true").answered, protocol.Packets.of):
        try:
            reader(said)
        except NoMessage:
            continue


def test_all_times_of_an_event_are_of_the_run() -> None:
    """Also when the counters were read before: a verdict reckons with that."""
    said = protocol.AGENT.heard(
        {"kind": "counters", "t": 5000.5, "since": 5000.25, "values": {"TcpInSegs": 1}}
    )
    event = happened(said, 1.5, host="server")
    assert (event.t, getattr(event, "since", None)) == (1.5, 1.25)
