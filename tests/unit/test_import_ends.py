"""Whose capture it is, if there is only one: links, times to live, times, and at last the name."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.judge.causes.rules import causes
from labctl.judge.result import RunResult
from tests.captured import (
    BEGUN,
    CLIENT,
    NEAR,
    SERVER,
    alone,
    both,
    closed,
    frames,
    handshake,
    imported,
    pcap,
)
from tests.walked import ACK, FIN, SYN, Sent

PLAIN = [*handshake(), *closed(1.0)]
FAR = 0.02
"""Seconds from one host to the other, in which times tell."""


def addresses(run: RunResult) -> dict[str, str]:
    assert run.history.lab
    return dict(run.history.lab.addresses)


def owned(folder: Path, name: str, sent: list[Sent]) -> str:
    """The address that a capture is taken for, whose packets passed at these times."""
    folder.mkdir(exist_ok=True)
    path = pcap(folder / "a", [(BEGUN + s.t, s.frame()) for s in sent])
    return addresses(imported(folder, {name: path}))[name]


@pytest.mark.parametrize("host", ["server", "client"])
def test_a_capture_of_one_end_belongs_to_it(tmp_path: Path, host: str) -> None:
    run = alone(tmp_path, PLAIN, host)
    mine = SERVER if host == "server" else CLIENT
    assert addresses(run)[host] == mine.rpartition(":")[0]
    assert "clock" not in str(run.why)


def far(sent: Sent, here: str) -> bytes:
    """A frame of which routers have lowered the time to live, if it comes from elsewhere."""
    (frame,) = (data for _, data in frames([sent], here))
    return frame[:22] + (frame[22:23] if sent.source == here else b"\x30") + frame[23:]


def test_the_time_to_live_tells_whose_capture_it_is(tmp_path: Path) -> None:
    """And not the name."""
    path = pcap(tmp_path / "a", [(BEGUN + s.t, far(s, CLIENT)) for s in PLAIN])
    assert addresses(imported(tmp_path, {"web": path}))["web"] == "10.0.0.3"


def test_a_cooked_capture_says_whose_it_is(tmp_path: Path) -> None:
    cooked = [
        (t, (b"\x00\x04" if data[26:30] == socket.inet_aton("10.0.0.3") else bytes(2))
         + bytes(12) + data[12:])
        for t, data in frames(PLAIN, CLIENT)
    ]  # fmt: skip
    path = pcap(tmp_path / "a", cooked, link=113)
    assert addresses(imported(tmp_path, {"web": path}))["web"] == "10.0.0.3"


def at(t: float, sent: Sent) -> Sent:
    return replace(sent, t=t)


@pytest.mark.parametrize("name", ["web", "client"])
def test_the_times_of_a_handshake_tell(tmp_path: Path, name: str) -> None:
    """Also if the SYN had to be repeated, and whatever the name says."""
    syn, synack, ack = handshake()
    again = [syn, at(1.0, syn)]
    asks = [*again, at(1.0 + FAR, synack), at(1.0 + FAR + NEAR, ack)]
    assert owned(tmp_path / "asks", name, asks) == "10.0.0.3"
    answers = [*again, at(1.0 + NEAR, synack), at(1.0 + FAR, ack)]
    assert owned(tmp_path / "answers", name, answers) == "10.0.0.2"


def test_an_address_that_opens_some_connections_and_accepts_others(tmp_path: Path) -> None:
    """A proxy's is in all of them, whatever its name is, and however late it answers."""
    *out, last = handshake(1.0, "10.0.0.2:50000", "10.0.0.9:80")
    for name in ("web", "client"):
        assert owned(tmp_path / name, name, [*PLAIN, *out, last]) == "10.0.0.2"
    assert owned(tmp_path / "busy", "proxy", [*PLAIN, *out, at(last.t + 0.05, last)]) == "10.0.0.2"


def test_a_host_may_have_several_addresses(tmp_path: Path) -> None:
    """So an address that opens all connections may be another's."""
    again = handshake(1.0, "10.0.0.3:50000", "10.0.0.9:80")
    for name, owner in (("client", "10.0.0.3"), ("web", "10.0.0.2")):
        assert owned(tmp_path / name, name, [*PLAIN, *again]) == owner


def crossed(theirs: float) -> list[Sent]:
    """Two SYNs that cross, as the client captured them, which repeated its own. Theirs came, and
    their answer so many seconds after its SYN."""
    syns = Sent(0.0, CLIENT, SERVER, SYN, 100), Sent(0.5, SERVER, CLIENT, SYN, 900)
    synacks = [replace(s, flags=SYN | ACK, ack=1001 - s.seq) for s in syns]
    return [
        *syns, at(1.0, syns[0]), at(1.0 + NEAR, synacks[0]), at(1.0 + theirs, synacks[1]),
        Sent(1.0 + theirs + NEAR, CLIENT, SERVER, ACK, 101, 901),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "owner"), [("client", "10.0.0.3"), ("web", "10.0.0.2")])
def test_if_both_opened_a_connection_the_name_tells_nothing(
    tmp_path: Path, name: str, owner: str
) -> None:
    """The run says so, and what it takes for granted."""
    path = pcap(tmp_path / "a", [(BEGUN + s.t, s.frame()) for s in crossed(2 * NEAR)])
    run = imported(tmp_path, {name: path})
    assert addresses(run)[name] == owner
    (told,) = (why for why in run.why if "both opened" in why)
    assert "nothing tells at which of them a was captured" in told
    assert told.startswith(SERVER if owner == "10.0.0.2" else CLIENT)


def test_if_both_opened_a_connection_times_may_tell(tmp_path: Path) -> None:
    path = pcap(tmp_path / "a", [(BEGUN + s.t, s.frame()) for s in crossed(FAR)])
    run = imported(tmp_path, {"web": path})
    assert addresses(run)["web"] == "10.0.0.3"
    assert "both opened" not in str(run.why)


def test_a_connection_that_one_opened_is_no_doubt(tmp_path: Path) -> None:
    assert "both opened" not in str(alone(tmp_path, PLAIN).why)


def test_a_syn_ack_that_was_lost_tells_nothing_by_its_time(tmp_path: Path) -> None:
    """The client's answer follows its repetition at once."""
    syn, synack, ack = handshake()
    again = [replace(each, t=each.t + 1.0) for each in (syn, synack, ack)]
    assert owned(tmp_path, "client", [syn, synack, *again]) == "10.0.0.3"


@pytest.mark.parametrize(("lacks", "certain"), [(False, True), (True, False)])
def test_a_fin_that_no_capture_has(tmp_path: Path, lacks: bool, certain: bool) -> None:
    """The other side acknowledged more than there is."""
    fin, acked, last, end = closed(1.0)
    sent = [*handshake(), *([] if lacks else [fin]), acked, last, end]
    (cause,) = (c for c in causes(alone(tmp_path, sent).history) if c.id == "closed-first")
    assert cause.certain is certain
    assert ("acknowledged more than was captured" in cause.text) is lacks


def test_a_socket_that_closes_its_connection_to_itself_closes_both_ends_at_once(
    tmp_path: Path,
) -> None:
    """Its own FIN comes first, and then its acknowledgement of that."""
    end = "127.0.0.1:40000"
    sent = [
        Sent(0.0, end, end, SYN, 100),
        Sent(NEAR, end, end, SYN | ACK, 100, 101),
        Sent(1.0, end, end, FIN | ACK, 101, 101),
        Sent(1.0 + NEAR, end, end, ACK, 102, 102),
    ]
    path = pcap(tmp_path / "a", [(BEGUN + s.t, s.frame()) for s in sent])
    (cause,) = causes(imported(tmp_path, {"box": path}).history)
    assert (cause.id, "closed at once" in cause.text) == ("closed-first", True)


def test_segments_that_are_equal_do_not_tell_whose_captures_they_are(tmp_path: Path) -> None:
    """All but the SYN were sent again, and alike: so it is as with each of them alone."""
    first = handshake()
    sent = [*first, *(replace(each, t=each.t + t) for t in (1.0, 3.0) for each in first[1:])]
    files = {
        host: pcap(tmp_path / host, frames(sent, end))
        for host, end in (("client", CLIENT), ("server", SERVER))
    }
    assert addresses(imported(tmp_path, files)) == {"client": "10.0.0.3", "server": "10.0.0.2"}


def test_a_syn_ack_that_was_sent_again_although_the_ack_had_come(tmp_path: Path) -> None:
    first = handshake()
    again = [replace(each, t=each.t + t) for t in (1.0, 3.0) for each in first[1:]]
    (cause,) = causes(both(tmp_path, [*first, *again]).history)
    assert (cause.id, cause.host, cause.certain) == ("accept-queue-full", "server", False)
    assert "again, 2 times, although the ACK had come" in cause.text
    lost = [replace(first[2], fate="lost"), again[0], replace(again[1], fate="lost"), *again[2:]]
    (folder := tmp_path / "lost").mkdir()
    assert causes(both(folder, [*first[:2], *lost]).history) == []
