"""Events and their lines, and what they add up to."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.ground.errors import UsageError
from labctl.probes.sockets import State
from labctl.record.events import (
    KINDS,
    VERSION,
    CallEvent,
    Event,
    ExecEvent,
    FateEvent,
    LabEvent,
    OutputEvent,
    ProcessEvent,
    SocketsEvent,
    StateEvent,
    StepEvent,
)
from labctl.record.history import History
from labctl.record.lines import read_events
from tests.fake import HEADER, tcp

TIMES = st.floats(-10, 1e6).map(lambda t: round(t, 6))
TEXT = st.text(max_size=20)
STATES = st.sampled_from([str(state) for state in State])
PACKETS = st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
NUMBERS = st.integers(0, 2**22).map(str)
OF_TYPE = {str: TEXT, int: st.integers(-1, 2**63), float: TIMES, bool: st.booleans(),
           NoneType: st.none()}  # fmt: skip
MORE: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "lab": {
        "version": st.just(VERSION),
        "environment": st.fixed_dictionaries(
            {}, optional={"kernel": st.one_of(st.none(), TEXT), "probes": st.lists(TEXT)}
        ),
    },
    "holders": {
        "commands": st.dictionaries(NUMBERS, TEXT, max_size=3),
        "sockets": st.dictionaries(NUMBERS, st.dictionaries(NUMBERS, st.integers(0, 2**32))),
        "unread": st.lists(st.integers(1, 2**22), max_size=3),
    },
    "sockets": {"text": st.sampled_from(["", HEADER, f"{HEADER}\n{tcp('LISTEN', ':80')}\n"])},
    "state": {"old": STATES, "new": STATES},
    "loss": {"data": PACKETS},
    "inject": {"data": PACKETS},
}
"""What has to be more than its type says."""


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that events have."""
    if hint in OF_TYPE:
        return OF_TYPE[hint]
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is list:
        return st.lists(of_type(*get_args(hint)), max_size=3)
    if get_origin(hint) is Mapping:
        keys, values = get_args(hint)
        return st.dictionaries(of_type(keys), of_type(values), max_size=3)
    return st.one_of(*(of_type(each) for each in get_args(hint)))


def events() -> st.SearchStrategy[Event]:
    """Any event at all."""
    return st.one_of(
        *(
            st.builds(
                kind,
                **{
                    field.name: MORE.get(name, {}).get(
                        field.name, of_type(get_type_hints(kind)[field.name])
                    )
                    for field in dataclasses.fields(kind)
                },
            )
            for name, kind in KINDS.items()
        )
    )


@settings(max_examples=200)
@given(st.lists(events(), max_size=5))
def test_events_are_read_as_they_were_written(written: list[Event]) -> None:
    lines = [event.to_json() for event in written]
    assert not any("\n" in line for line in lines)
    assert list(read_events(lines)) == written


def test_a_line_has_what_is_known_and_no_more() -> None:
    start = ProcessEvent(1.23456789, "server", "server", "start", pid=2)
    assert json.loads(start.to_json()) == {
        "t": 1.23456789, "kind": "process", "process": "server", "host": "server", "phase": "start",
        "pid": 2,
    }  # fmt: skip
    call = CallEvent(0.0, "p", "h", 2, "done", "recv", "recv", result=0, eof=False, data="")
    assert {"result": 0, "eof": False, "data": ""}.items() <= json.loads(call.to_json()).items()


@pytest.mark.parametrize(
    "line",
    [
        "", "{", "null", "[]", "7", '"step"', "{}", '{"t": 1}', '{"kind": "step"}',
        '{"t": 1, "kind": "nothing"}', '{"t": 1, "kind": []}', '{"t": 1, "kind": "output"}',
        '{"t": 1, "kind": "output", "process": "p", "host": "h", "text": "x", "more": 1}',
    ],
)  # fmt: skip
def test_lines_that_are_no_events(line: str) -> None:
    good = OutputEvent(1.0, "p", "h", "x")
    found = read_events([good.to_json(), line])
    assert next(found) == good
    with pytest.raises(UsageError, match=r"^history\.jsonl:2: no event: "):
        next(found)


def test_kinds_are_named_as_they_are() -> None:
    assert {name: kind.kind for name, kind in KINDS.items()} == {name: name for name in KINDS}


def test_a_call_that_one_event_tells_of_begins_and_ends() -> None:
    """Whoever asks sees both, as if two events had told."""
    start = ProcessEvent(1.0, "p", "h", "start", pid=2)
    common: dict[str, Any] = {"local": "198.18.0.3:40000", "peer": "198.18.0.2:80", "fd": 3}
    before = CallEvent(1.1, "p", "h", 2, "enter", "accept", "accept", **common)
    after = CallEvent(1.3, "p", "h", 2, "done", "accept", "accept", result=4, **common)
    told = dataclasses.replace(after, since=1.1)
    assert [*read_events([told.to_json()])] == [told]
    one, two = History([start, told]), History([start, before, after])
    assert [*one.events] == [*two.events] == [start, before, after]
    for history in (one, two):
        state = history.processes["p"]
        assert (state.entered, state.under_way) == (None, {})
        assert state.calls == [after] == [*history.events.of(CallEvent, phase="done")]
    failed = dataclasses.replace(told, errno="EMFILE", error="Too many open files", result=None)
    assert [each.errno for each in failed.both] == [None, "EMFILE"]


def test_the_state_of_a_process() -> None:
    history = History()
    history.add(ProcessEvent(1.0, "p", "h", "start", pid=2))
    state = history.processes["p"]
    assert (state.host, state.running, state.obeys) == ("h", True, False)
    history.add(CallEvent(1.1, "p", "h", 2, "enter", "await", "await"))
    assert state.entered
    assert state.obeys
    close = CallEvent(1.2, "p", "h", 2, "done", "close", "close")
    history.add(close)
    assert (state.entered, state.calls) == (None, [close])
    for t, count in ((1.21, 5), (1.22, 7)):
        history.add(CallEvent(t, "p", "h", 2, "done", "recv", "recv", result=count))
    failed = CallEvent(1.23, "p", "h", 2, "done", "recv", "recv", errno="ECONNRESET")
    history.add(failed)
    assert state.received == 12
    assert state.last == {"close": close, "recv": failed}
    history.add(OutputEvent(1.3, "p", "h", "a"))
    history.add(OutputEvent(1.4, "p", "h", "b\n"))
    assert state.output == "ab\n"
    history.add(ProcessEvent(1.5, "p", "h", "exit", exit=3))
    history.add(ProcessEvent(1.6, "p", "h", "gone", signal="KILL"))
    assert (state.running, state.exit, state.signal) == (False, 3, None)
    history.add(ProcessEvent(2.0, "p", "h", "start", pid=2))
    assert history.processes["p"] is not state
    assert history.processes["p"].calls == []
    assert history.now == 2.0


def test_labels_are_the_ends_of_steps() -> None:
    history = History(
        [
            StepEvent(1.0, 0, "begin", "kill p", label="killed"),
            StepEvent(2.0, 0, "end", "kill p", label="killed", outcome="done"),
            StepEvent(3.0, 1, "end", "note x", outcome="done"),
        ]
    )
    assert history.labels == {"killed": 2.0}


def test_the_engines_own_sockets_never_count() -> None:
    lines = [
        HEADER,
        tcp("LISTEN", "127.0.0.11:33333"),
        tcp("ESTAB", "[::ffff:127.0.0.11]:53", "[::ffff:127.0.0.1]:4000"),
        tcp("LISTEN", ":8000"),
    ]
    event = SocketsEvent(1.0, "server", "look", "\n".join(lines))
    assert [str(socket.local) for socket in event.sockets] == ["0.0.0.0:8000"]
    assert event.sockets is event.sockets


def test_looks_at_thousands_of_sockets_are_not_all_kept_parsed() -> None:
    """A run may have many of them."""
    ports = range(20000, 24000)
    waiting = [tcp("TIME-WAIT", f"10.0.0.1:{port}", "10.0.0.2:80") for port in ports]
    texts = ["\n".join([HEADER, *waiting[t:]]) for t in range(8)]
    looks = [SocketsEvent(float(t), "client", "change", text) for t, text in enumerate(texts)]
    first = looks[0].sockets
    assert looks[0].sockets is first
    assert [len(look.sockets) for look in looks] == list(range(4000, 3992, -1))
    assert looks[-1].sockets is looks[-1].sockets
    assert looks[0].sockets is not first
    assert looks[0].sockets == first


def test_the_texts_of_transitions_are_shared() -> None:
    line = StateEvent(1.0, "server", "10.0.0.1:80", "10.0.0.2:40000", "ESTAB", "UNCONN").to_json()
    first, second = read_events([line, line])
    assert isinstance(first, StateEvent)
    assert isinstance(second, StateEvent)
    assert first.remote is second.remote


def test_names_and_addresses() -> None:
    names = {"a": "10.0.0.1", "a.2": "10.0.0.2", "a.v6": "fd00::1", "ab": "10.0.0.3"}
    history = History([LabEvent(0.0, "2026-01-01T00:00:00Z", "fake", {}, names)])
    assert history.addresses("a") == {"10.0.0.1", "10.0.0.2", "fd00::1"}
    assert history.addresses("a.2") == {"10.0.0.2"}
    assert history.addresses("a.v6") == {"fd00::1"}
    assert history.addresses("b") == set()
    assert History().addresses("a") == set()


def test_an_empty_history() -> None:
    history = History()
    assert (history.now, history.lab, history.growth("h", "c")) == (0.0, None, None)
    history.add(ExecEvent(1.0, "h", "true", 0, ""))
    assert [*history.events] == [ExecEvent(1.0, "h", "true", 0, "")]


def test_what_is_told_late_turns_no_time_back() -> None:
    late = FateEvent(1.0, "server", "10.0.0.1:8000", "10.0.0.2:40000", "retransmit")
    history = History([OutputEvent(2.0, "server", "server", "b"), late])
    assert history.now == 2.0
