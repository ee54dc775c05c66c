"""A scenario of a record: it loads, and has what was seen, whatever the record is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labctl.ground.errors import UsageError
from labctl.judge.recorded import load, scenario_of
from labctl.judge.result import RunResult
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import CallEvent, Event, LabEvent, ProcessEvent, ResetEvent
from labctl.record.history import History
from labctl.reports.skeleton import skeleton
from tests import caused
from tests.captured import CLIENT, NEAR, SERVER, alone, both, closed, handshake
from tests.caused import call, calls, look, told
from tests.reported import RUN, recorded_run
from tests.walked import ACK, FIN, RST, SYN, Sent


def steps(run: RunResult) -> list[str]:
    """The steps of its scenario, a line each."""
    text = skeleton(run, scenario_of(run))
    (case,) = load_document(Document("made", text), text, "made", {})
    assert len(case.steps) == text.count("\n  - ")
    return [line[4:] for line in text.splitlines() if line.startswith("  - ")]


def test_a_labs_own_run() -> None:
    run = load(RUN)
    text = skeleton(run, scenario_of(run))
    assert 'sysctls: {"net.ipv4.tcp_fin_timeout":' in text
    found = steps(run)
    assert found.index('call: {client: "connect server:8000"}') < found.index("kill: server")
    kill = found.index("kill: server")
    assert found[kill - 1] == 'wait: {process: {"server": "awaiting"}}', "what it sent is sent"
    assert "wait: {sockets: {client: CLOSE-WAIT}}" in found[kill:]
    assert "wait: {sockets: {server: none, client: CLOSE-WAIT}}" in found[kill:]
    assert found.count("start: server") > 1
    assert not any(step.startswith("drop") for step in found)


def test_a_host_with_two_addresses_and_nothing_else() -> None:
    run = replace(load(RUN), history=told(calls(1.0, "client", "socket; connect server:8000")))
    text = skeleton(run, None)
    (case,) = load_document(Document("made", text), text, "made", {})
    assert (case.hosts["server"].addresses, case.hosts["backend"].addresses) == (2, 1)


def test_two_captures(tmp_path: Path) -> None:
    data = [Sent(0.5, CLIENT, SERVER, ACK, 101, 901, 7), Sent(0.6, SERVER, CLIENT, ACK, 901, 108)]
    end = [Sent(1.0, CLIENT, SERVER, RST | ACK, 108, 901)]
    found = steps(both(tmp_path, [*handshake(), *data, *end]))
    calls = [step for step in found if step.startswith(("call", "start"))]
    assert calls == [
        "start: server_8000",
        'call: {server_8000: "socket"}',
        'call: {server_8000: "set SO_REUSEADDR"}',
        'call: {server_8000: "bind :8000"}',
        'call: {server_8000: "listen 20"}',
        "start: client_1",
        'call: {client_1: "socket"}',
        'call: {client_1: "connect server:8000"}',
        'call: {server_8000: "accept"}',
        'call: {client_1: "send 7 bytes"}',
        'call: {server_8000: "recv 7"}',
        'call: {client_1: "set SO_LINGER 1 0"}',
        'call: {client_1: "close"}',
    ]


@pytest.mark.parametrize(("pause", "sends"), [(0.2, ["7"]), (0.4, ["3", "4"])])
def test_a_pause_parts_what_was_sent(tmp_path: Path, pause: float, sends: list[str]) -> None:
    data = [Sent(0.5, CLIENT, SERVER, ACK, 101, 901, 3),
            Sent(0.5 + pause, CLIENT, SERVER, ACK, 104, 901, 4)]  # fmt: skip
    found = steps(both(tmp_path, [*handshake(), *data]))
    assert [s.split()[3] for s in found if '"send' in s] == sends


def test_what_was_lost_is_dropped(tmp_path: Path) -> None:
    lost = Sent(1.0, CLIENT, SERVER, FIN | ACK, 101, 901, fate="lost")
    again = Sent(1.3, CLIENT, SERVER, FIN | ACK, 101, 901)
    rest = [Sent(1.3 + 2 * NEAR, SERVER, CLIENT, ACK, 901, 102)]
    found = steps(both(tmp_path, [*handshake(), lost, again, *rest]))
    (drop,) = [step for step in found if step.startswith("drop")]
    assert drop == "drop: {from: client, to: server, flags: FIN, count: 1}"
    assert found.index(drop) < found.index('call: {client_1: "close"}')


def test_one_capture_does_not_tell_what_to_drop(tmp_path: Path) -> None:
    found = steps(alone(tmp_path, [*handshake(), *closed(1.0)]))
    assert 'call: {peer_1: "connect server:8000"}' in found
    assert not any(step.startswith("drop") for step in found)


def watched(*acts: tuple[int, str, dict[str, Any]], waits: Event | None = None) -> list[str]:
    """The steps of a watch of a server, in which processes made these calls on descriptors; and one
    that waits still."""
    events: list[Event] = [ProcessEvent(0.5, "server", "server", "start", pid=2, watch="calls")]
    for number, (pid, text, more) in enumerate(acts, 1):
        name = text.partition(" ")[0]
        t = 0.5 + number / 100
        events.append(CallEvent(t, "server", "server", pid, "done", text, name, **more))
    events += [waits, look(1.0)] if waits else [look(1.0)]
    return steps(recorded_run(told(events)))


def test_a_call_by_descriptor_means_its_own_socket() -> None:
    found = watched(
        (2, "socket", {"fd": 3}), (2, "socket", {"fd": 4}), (2, "close", {"fd": 3}),
        (2, "bind :8000", {"fd": 4}), (2, "listen 5", {"fd": 4}),
        (2, "socket", {"fd": 3}), (2, "bind :8001", {"fd": 3}), (2, "listen 5", {"fd": 3}),
        (2, "close", {"fd": 4}),
    )  # fmt: skip
    assert [step for step in found if step.startswith("call")] == [
        f'call: {{server: "{text}"}}' for text in (
            "socket as s1", "socket as s2", "use s1", "close", "use s2", "bind :8000", "listen 5",
            "socket", "bind :8001", "listen 5", "use s2", "close listener")
    ]  # fmt: skip


def test_what_a_child_had_open_closes_as_it_ends() -> None:
    serves: list[tuple[int, str, dict[str, Any]]] = [
        (7, text, {"fd": 3}) for text in ("socket", "bind :8000", "listen 5")
    ]
    over = CallEvent(0.9, "server", "server", 7, "done", "exit by signal 9", "exit")
    found = watched(*serves)
    assert not any("close" in step for step in found)
    run = recorded_run(told([
        ProcessEvent(0.5, "server", "server", "start", pid=2, watch="calls"),
        *(call(0.5 + n / 100, "server", text, pid=pid, **more)
          for n, (pid, text, more) in enumerate(serves)),
        over, look(1.0)]))  # fmt: skip
    assert 'call: {server: "close listener"}' in steps(run)


def test_what_another_process_has_open_does_not_close() -> None:
    fork = (2, "fork", {"result": 7})
    serves: list[tuple[int, str, dict[str, Any]]] = [
        (2, text, {"fd": 3}) for text in ("socket", "bind :8000", "listen 5")
    ]
    found = watched(*serves, fork, (7, "close", {"fd": 3}))
    assert not any("close" in step for step in found)
    assert 'call: {server: "close listener"}' in watched(
        *serves, fork, (7, "close", {"fd": 3}), (2, "close", {"fd": 3})
    )


def test_an_accept_keeps_no_other_call_waiting() -> None:
    """Another one made it, and waits for the whole time, or for a part of it."""
    serves: list[tuple[int, str, dict[str, Any]]] = [
        (2, text, {"fd": 3}) for text in ("socket", "bind :8000", "listen 5")
    ]
    waits = CallEvent(0.6, "server", "server", 7, "enter", "accept", "accept", fd=3)
    more: list[tuple[int, str, dict[str, Any]]] = [(2, "socket", {"fd": 9})]
    assert not any("accept" in step for step in watched(*serves, *more * 20, waits=waits))
    found = watched(*serves, waits=waits)
    assert 'call: {server: "accept"}' in found


def test_calls_by_the_words_of_the_language() -> None:
    failed: dict[str, Any] = {"fd": 3, "errno": "EPIPE", "error": "Broken pipe"}
    there: dict[str, Any] = {"fd": 3, "peer": "[fd00::3]:9"}
    found = watched(
        (2, "socket tcp6", {"fd": 3}), (2, "connect [fd00::3]:9", there), (2, "send", failed)
    )  # fmt: skip
    assert 'call: {server: "connect client.v6:9"}' in found
    assert 'call: {server: "send 1 bytes || continue"}' in found


def test_a_listener_that_was_there_before_its_calls_were_seen() -> None:
    """A connection that was there as well nobody can make again; nor what was done with it."""
    found = watched(
        (2, "has tcp listening SO_REUSEADDR=1", {"fd": 3, "local": "0.0.0.0:8000"}),
        (2, "has tcp", {"fd": 4, "local": caused.SERVER, "peer": caused.CLIENT}),
        (2, "recv", {"fd": 4, "errno": "ECONNRESET", "error": "reset"}),
        (2, "close", {"fd": 4}), (2, "close", {"fd": 3}),
    )  # fmt: skip
    assert [step for step in found if step.startswith("call")] == [
        f'call: {{server: "{text}"}}' for text in (
            "socket tcp", "set SO_REUSEADDR 1", "bind :8000", "listen 20", "close listener")
    ]  # fmt: skip


def test_a_host_that_connects_to_itself_by_loopback() -> None:
    ends = "127.0.0.1:40000", "127.0.0.1:9000"
    history = told([look(0.5, host="client"), look(3.0)])
    packets = (each.record() for each in caused.handshake(1.0, *ends))
    history.add_packets(3.0, "client", b"".join(packets))
    found = steps(recorded_run(history))
    assert "start: client_1" in found and "start: client_9000" in found


def test_a_record_of_one_host_gets_a_second_one() -> None:
    lab = LabEvent(0.0, "2026-01-01T00:00:00Z", "watch", {"probes": []}, {"here": "127.0.0.1"})
    begun = ProcessEvent(0.5, "here", "here", "start", pid=2, watch="calls")
    run = recorded_run(History([lab, begun, call(1.0, "here", "socket", fd=3)]))
    assert "\n  peer: {}\n" in skeleton(run, None)
    assert steps(run)


@pytest.mark.parametrize(("reason", "reads"), [("TCP_ABORT_ON_CLOSE", 0), ("TCP_STATE", 1)])
def test_what_was_unread_at_a_close_is_not_read(reason: str, reads: int) -> None:
    here, there = caused.CLIENT, caused.SERVER
    data = [Sent(2.0, there, here, ACK, 1, 1, 5), Sent(2.0002, here, there, ACK, 1, 6)]
    begun = [ProcessEvent(0.5, "client", "client", "start", pid=2, watch="calls")]
    asks = [call(0.9, "client", "socket", fd=3),
            call(1.1, "client", "connect server:8000", fd=3, local=here, peer=there),
            call(3.0, "client", "close", fd=3)]  # fmt: skip
    end = [Sent(3.0, here, there, RST | ACK, 1, 6)]
    why = ResetEvent(3.0, "client", here, there, reason)
    events = [*begun, *asks, *caused.established(1.0), why, look(3.5)]
    found = steps(recorded_run(told(events, [*caused.handshake(1.0), *data, *end])))
    assert sum("recv 5" in step for step in found) == reads


@pytest.mark.parametrize("reason", ["TCP_ABORT_ON_CLOSE", "TCP_STATE"])
def test_a_reset_that_segments_tell_comes_before_what_it_led_to(reason: str) -> None:
    here, there = caused.CLIENT, caused.SERVER
    sent = [*caused.handshake(1.0), Sent(2.0, there, here, ACK, 1, 1, 5),
            Sent(2.0002, here, there, ACK, 1, 6),
            Sent(3.0, here, there, RST | ACK, 1, 6)]  # fmt: skip
    gone = [*caused.trace(2.99998, "ESTAB", "UNCONN", ends=(here, there)),
            *caused.trace(3.00005, "ESTAB", "UNCONN", ends=(there, here)),
            ResetEvent(2.99998, "client", here, there, reason)]  # fmt: skip
    found = steps(recorded_run(told([*caused.established(1.0), *gone, look(4.0)], sent)))
    gone_by = next(n for n, step in enumerate(found) if "client: none" in step)
    assert found.index('call: {client_1: "close"}') < gone_by
    assert ('call: {client_1: "set SO_LINGER 1 0"}' in found) is (reason == "TCP_STATE")


def test_of_a_run_in_which_nothing_began(tmp_path: Path) -> None:
    run = alone(tmp_path, closed(1.0))
    with pytest.raises(UsageError, match="of no connection the beginning; watch from before"):
        skeleton(run, None)


def test_of_a_run_in_which_nothing_ran() -> None:
    run = recorded_run(History(), result="skip", reason="no root")
    with pytest.raises(UsageError, match="nothing ran there: no root"):
        skeleton(run, None)


@pytest.mark.parametrize("count", [200, 201])
def test_too_many_to_read(tmp_path: Path, count: int) -> None:
    asked = [Sent(n / 100, f"10.0.0.3:{40000 + n}", SERVER, SYN, 100) for n in range(count)]
    run = alone(tmp_path, asked)
    if count > 200:
        with pytest.raises(UsageError, match="201 connections; a scenario has 200 at most"):
            skeleton(run, None)
    else:
        assert skeleton(run, None).count("connect") == count
