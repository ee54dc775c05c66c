"""Captures become a run: of two ends or one, with one clock, whoever they belong to."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labctl.cli import commands as cli
from labctl.ground.errors import UsageError
from labctl.imports.census import Wanted, choose, count
from labctl.imports.files import Capture
from labctl.judge.causes.rules import causes
from labctl.judge.rejudge import judge
from labctl.judge.result import RunResult
from labctl.record.timelines import timelines
from labctl.reports.ladder_text import ladders
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
    pcapng,
)
from tests.walked import ACK, FIN, RST, SYN, Sent

PLAIN = [*handshake(), *closed(1.0)]


def addresses(run: RunResult) -> dict[str, str]:
    assert run.history.lab
    return dict(run.history.lab.addresses)


def marks(run: RunResult) -> list[str]:
    """What is special about each segment."""
    return [", ".join(segment.marks) for segment in run.history.segments()]


def test_two_captures_are_one_run(tmp_path: Path) -> None:
    run = both(tmp_path, PLAIN)
    segments = run.history.segments()
    assert addresses(run) == {"server": "10.0.0.2", "client": "10.0.0.3"}
    senders = "client", "server", "client", "client", "server", "server", "client"
    assert tuple(s.sender for s in segments) == senders
    for segment, sent in zip(segments, PLAIN, strict=True):
        assert segment.t == pytest.approx(sent.t, abs=2 * NEAR)
        assert segment.arrived == pytest.approx((segment.t or 0.0) + NEAR, abs=NEAR)
    assert set(marks(run)) == {""}


def test_the_clock_is_told(tmp_path: Path) -> None:
    run = both(tmp_path, PLAIN)
    server, client = run.history.imported["server"], run.history.imported["client"]
    assert (server.ahead, server.drift, server.bound) == (0.0, 0.0, 0.0)
    assert client.file == "b.pcap"
    assert client.bound and abs(client.ahead - 3.0) <= client.bound < 3 * NEAR
    assert run.why[-1].startswith("client's clock is 3.000")


def test_a_lost_segment(tmp_path: Path) -> None:
    fin = Sent(1.0, CLIENT, SERVER, FIN | ACK, 101, 901, fate="lost")
    again = Sent(1.3, CLIENT, SERVER, FIN | ACK, 101, 901)
    rest = [Sent(1.3 + 2 * NEAR, SERVER, CLIENT, ACK, 901, 102)]
    quiet = [Sent(2.5, SERVER, CLIENT, FIN | ACK, 901, 102),
             Sent(2.5 + 2 * NEAR, CLIENT, SERVER, ACK, 102, 902)]  # fmt: skip
    run = both(tmp_path, [*handshake(), fin, again, *rest, *quiet])
    assert marks(run)[3:5] == ["lost", "retransmitted"]


def test_one_capture_does_not_tell_what_is_lost(tmp_path: Path) -> None:
    lost = Sent(1.0, SERVER, CLIENT, ACK, 901, 101, 10, fate="lost")
    again = [Sent(1.3, SERVER, CLIENT, ACK, 901, 101, 10)]
    run = alone(tmp_path, [*handshake(), lost, *again, *closed(2.0)[:1]])
    assert addresses(run) == {"server": "10.0.0.2", "peer": "10.0.0.3"}
    found = run.history.segments()
    assert marks(run) == ["", "", "", "", "retransmitted", ""]
    assert {s.unseen for s in found} == {True}
    assert [s.sender for s in found[:2]] == ["peer", "server"]


def test_loopback_alone(tmp_path: Path) -> None:
    here, there = "127.0.0.1:40000", "127.0.0.1:8000"
    sent = handshake(0.0, here, there)
    path = pcap(tmp_path / "a", [(BEGUN + s.t, frames([s], s.source)[0][1]) for s in sent])
    run = imported(tmp_path, {"web": path})
    assert run.hosts == ("web",)
    assert [(s.sender, s.receiver) for s in run.history.segments()] == [("web", "web")] * 3
    assert judge(run.folder) == []


def test_a_packet_that_several_interfaces_show_is_one(tmp_path: Path) -> None:
    """As `-i any` does where containers are: there is a router between, on the host itself."""
    data = Sent(0.5, SERVER, CLIENT, ACK, 901, 101, 100)
    answer = Sent(0.6, CLIENT, SERVER, ACK, 101, 1001)
    once = frames([*handshake(), data, answer], SERVER)
    again = [(t + 3e-5, d[:22] + bytes([d[22] - 1]) + d[23:]) for t, d in once]
    counted = [
        (t, d[:18] + struct.pack("!H", 1 + n) + d[20:])
        for n, pair in enumerate(zip(once, again, strict=True))
        for t, d in pair
    ]
    run = imported(tmp_path, {"server": pcap(tmp_path / "a", counted)})
    assert marks(run) == [""] * len(once)


def test_what_is_sent_twice_is_two(tmp_path: Path) -> None:
    data = [Sent(t, SERVER, CLIENT, ACK, 901, 101, 100) for t in (0.5, 0.7)]
    run = alone(tmp_path, [*handshake(), *data, *closed(1.0)])
    assert marks(run)[3:5] == ["", "retransmitted"]


# --- What lies between ----------------------------------------------------------------------------


def translated(sent: list[Sent]) -> list[Sent]:
    """As the server sees them, behind a NAT."""
    new = {CLIENT: "192.0.2.7:61002", SERVER: SERVER}
    return [replace(s, source=new[s.source], target=new[s.target]) for s in sent]


def test_a_nat_between(tmp_path: Path) -> None:
    server = pcap(tmp_path / "a", frames(translated(PLAIN), SERVER))
    client = pcap(tmp_path / "b", frames(PLAIN, CLIENT, 3.0))
    run = imported(tmp_path, {"server": server, "client": client})
    assert addresses(run) == {"server": "10.0.0.2", "client": "10.0.0.3"}
    assert set(marks(run)) == {""}
    assert (
        "a NAT lies between: 10.0.0.3:40000 is 192.0.2.7:61002 in the capture of server" in run.why
    )


def test_marks_that_something_between_changed(tmp_path: Path) -> None:
    def marked(number: int, frame: bytes) -> bytes:
        return frame[:18] + struct.pack("!H", 5000 + number) + frame[20:]

    server = pcap(
        tmp_path / "a", [(t, marked(n, d)) for n, (t, d) in enumerate(frames(PLAIN, SERVER))]
    )
    client = pcap(tmp_path / "b", frames(PLAIN, CLIENT, 3.0))
    run = imported(tmp_path, {"server": server, "client": client})
    assert set(marks(run)) == {""}


@pytest.mark.parametrize("whole", [SERVER, CLIENT])
def test_offload_is_no_loss(tmp_path: Path, whole: str) -> None:
    """The server sends a large segment that goes as two, or the client's end joins two."""
    big = [Sent(1.0, SERVER, CLIENT, ACK, 901, 101, 2000)]
    small = [Sent(1.0, SERVER, CLIENT, ACK, 901, 101, 1000),
             Sent(1.0 + NEAR / 10, SERVER, CLIENT, ACK, 1901, 101, 1000)]  # fmt: skip
    rest = [Sent(1.1, CLIENT, SERVER, ACK, 101, 2901), *closed(3.0)[:2]]
    left, came = (big, small) if whole == SERVER else (small, big)
    server = pcap(tmp_path / "a", frames([*handshake(), *left, *rest], SERVER))
    client = pcap(tmp_path / "b", frames([*handshake(), *came, *rest], CLIENT, 3.0))
    run = imported(tmp_path, {"server": server, "client": client})
    assert not any(s.lost or s.injected for s in run.history.segments())


def test_captures_of_other_connections(tmp_path: Path) -> None:
    other = [
        Sent(s.t, s.source, s.target, s.flags, s.seq + 7, s.ack and s.ack + 7, s.data)
        for s in handshake(0.0, "10.0.0.7:41000", "10.0.0.8:80")
    ]
    one = pcap(tmp_path / "a", frames(PLAIN, SERVER))
    two = pcap(tmp_path / "b", frames(other, "10.0.0.8:80"))
    with pytest.raises(UsageError, match="have no segment in common; give the two ends"):
        imported(tmp_path, {"server": one, "client": two})


def test_a_capture_that_began_later(tmp_path: Path) -> None:
    """What it can't have seen is not lost."""
    data = [Sent(5.0 + n, SERVER, CLIENT, ACK, 901 + n, 101, 1) for n in range(3)]
    acks = [Sent(5.01 + n, CLIENT, SERVER, ACK, 101, 902 + n) for n in range(3)]
    sent = sorted([*handshake(), *data, *acks], key=lambda s: s.t)
    server = pcap(tmp_path / "a", frames(sent, SERVER))
    client = pcap(tmp_path / "b", frames(sent, CLIENT)[3:])
    run = imported(tmp_path, {"server": server, "client": client})
    assert set(marks(run)) == {""}
    assert [s.unseen for s in run.history.segments()] == [True] * 3 + [False] * 6


# --- What is chosen -------------------------------------------------------------------------------


def connection(number: int, end: list[Sent] | None = None) -> list[Sent]:
    client, t = f"10.0.0.3:{40000 + number}", float(number)
    ended = closed(t + 0.5) if end is None else end
    names = {CLIENT: client, SERVER: SERVER}
    return [
        *handshake(t, client),
        *(replace(s, source=names[s.source], target=names[s.target]) for s in ended),
    ]


@pytest.mark.parametrize(("room", "first"), [(8, [5]), (12, [0, 5]), (20, [0, 1, 5])])
def test_bad_endings_come_first(tmp_path: Path, room: int, first: list[int]) -> None:
    reset = [Sent(5.5, SERVER, CLIENT, RST | ACK, 901, 101)]
    sent = [s for n in range(6) for s in connection(n, reset if n == 5 else None)]
    counted = [count(Capture(pcap(tmp_path / "a", frames(sent, SERVER))), Wanted())]
    chosen = choose(counted, room)
    ports = sorted(int.from_bytes(key[-2:], "big") - 40000 for key in chosen.numbers[0])
    left = 6 - len(first)
    assert (ports, chosen.left_out, chosen.packets) == (first, left, 7 * left)


def test_a_reset_is_drawn_before_a_hundred_good_ends(tmp_path: Path) -> None:
    reset = [Sent(130.5, SERVER, CLIENT, RST | ACK, 901, 101)]
    sent = [s for n in range(140) for s in connection(n, reset if n == 130 else None)]
    run = alone(tmp_path, sent)
    drawn = ladders([run])
    assert "40 of 140 connections" in drawn
    assert "RST ACK" in drawn


# --- Claims and causes ----------------------------------------------------------------------------

CLAIMS = """\
title: claims
hosts:
  server: {calls: accept}
  client: {}
steps: []
expect:
"""


@pytest.mark.parametrize(
    ("claim", "two", "one"),
    [
        ("segments: {from: server, flags: FIN, count: 1}", "pass", "pass"),
        ("segments: {from: client, flags: FIN, count: 1}", "pass", "unknown"),
        ("segments: {from: client, flags: FIN, at_least: 1}", "pass", "pass"),
        ("segments: {from: client, flags: FIN, count: 0}", "fail", "fail"),
        ("segments: {from: server, flags: RST, count: 0}", "pass", "pass"),
        ("segments: {from: client, flags: RST, count: 0}", "pass", "unknown"),
        ("segments: {from: server, lost: true, count: 0}", "pass", "unknown"),
        ("path: {server: [SYN-RECV, ESTAB, CLOSE-WAIT, LAST-ACK]}", "fail", "fail"),
        ("path: {server: [SYN-RECV, ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", "pass", "pass"),
        ("lasted: {server: CLOSE-WAIT, for: 100ms, tolerance: 30ms}", "pass", "pass"),
        ("lasted: {server: CLOSE-WAIT, for: 3s}", "fail", "fail"),
        ("sockets: {server: LISTEN}", "unknown", "unknown"),
        ("counters: {server: {TcpActiveOpens: 0}}", "unknown", "unknown"),
        ("process: {server: ECONNRESET}", "unknown", "unknown"),
    ],
)
def test_claims(tmp_path: Path, claim: str, two: str, one: str) -> None:
    later = [Sent(5.0, "10.0.0.3:50000", SERVER, SYN, 1)]  # both captures go on
    for found, made in ((two, both), (one, alone)):
        folder = tmp_path / made.__name__
        folder.mkdir()
        run = made(folder, [*PLAIN, *later, *later])
        claimed = claim.replace("client", "peer") if made is alone else claim
        text = CLAIMS.replace("client", "peer") if made is alone else CLAIMS
        path = folder / "claims.yaml"
        path.write_text(f"{text}  - {claimed}\n")
        (verdict,) = judge(run.folder, path)
        assert verdict.result == found, verdict


def test_who_closed_first(tmp_path: Path) -> None:
    (cause,) = causes(both(tmp_path, PLAIN).history)
    assert (cause.id, cause.host, cause.certain) == ("closed-first", "client", True)


# --- The command ----------------------------------------------------------------------------------


def call(*words: str | Path) -> tuple[int, str, str]:
    found = CliRunner().invoke(cli.main, ["import", *map(str, words)])
    return found.exit_code, found.stdout, found.stderr


def test_the_command(tmp_path: Path) -> None:
    server = pcapng(tmp_path / "a.pcapng", frames(PLAIN, SERVER))
    client = pcap(tmp_path / "b.pcap", frames(PLAIN, CLIENT, 3.0))
    status, out, err = call(f"server={server}", f"client={client}", "--out", tmp_path / "runs")
    assert (status, out, err) == (0, f"{tmp_path}/runs/server-client\n", "")
    report = CliRunner().invoke(cli.main, ["report", out.strip()])
    assert report.exit_code == 0 and "[~FIN-WAIT-2]" in report.stdout
    again = CliRunner().invoke(cli.main, ["explain", "--last"])
    assert "client closed first" in again.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["server"], "import server: no HOST=FILE; name the host that the file is of: "),
        (["server="], "import server=: no HOST=FILE"),
        (["a b=x.pcap"], "a b=x.pcap: no name for a host; allowed: letters, digits and hyphens"),
        (["peer=x.pcap"], "peer: that is what all hosts without a capture are called"),
        (["a=x.pcap", "b=./x.pcap"], "both hosts have the same capture; give two"),
        (["a=x", "b=x", "c=x"], "one capture, or two of different hosts"),
        (["a=x", "a=y"], "one capture, or two of different hosts"),
        (["a=/none.pcap"], "/none.pcap: can't be read: No such file or directory"),
    ],
)
def test_bad_words(words: list[str], message: str) -> None:
    status, out, err = call(*words)
    assert (status, out) == (2, "")
    assert message in err


def test_nothing_to_import(tmp_path: Path) -> None:
    path = pcap(tmp_path / "a.pcap", frames(PLAIN, SERVER))
    status, _, err = call(f"server={path}", "--port", "9")
    assert status == 2
    assert f"{path}: it has no TCP segment that --port and --host choose" in err


# --- Resets, of which only segments tell ----------------------------------------------------------

LATER = Sent(20.0, "10.0.0.3:50000", SERVER, SYN, 1)


def likely(tmp_path: Path, *sent: Sent) -> list[tuple[str, str, bool]]:
    """The causes of what both ends captured, but for who closed first."""
    told = causes(both(tmp_path, [*sorted(sent, key=lambda s: s.t), LATER]).history)
    return [(c.id, c.host, c.certain) for c in told if c.id not in ("closed-first", "no-answer")]


def test_a_refused_connection(tmp_path: Path) -> None:
    sent = [
        Sent(0.0, CLIENT, SERVER, SYN, 100),
        Sent(2 * NEAR, SERVER, CLIENT, RST | ACK, 0, 101),
    ]
    assert likely(tmp_path, *sent) == [("connect-refused", "server", False)]


def test_a_reset_by_a_program(tmp_path: Path) -> None:
    data = [Sent(1.0, CLIENT, SERVER, ACK, 101, 901, 5), Sent(1.1, SERVER, CLIENT, ACK, 901, 106)]
    reset = Sent(2.0, SERVER, CLIENT, RST | ACK, 901, 106)
    assert likely(tmp_path, *handshake(), *data, reset) == [("reset-by-close", "server", False)]


def probes(*times: float) -> list[Sent]:
    return [Sent(t, SERVER, CLIENT, ACK, 900, 101) for t in times]


def test_keepalive_that_gives_up(tmp_path: Path) -> None:
    reset = Sent(4.0, SERVER, CLIENT, RST | ACK, 901, 101)
    sent = [*handshake(), *probes(1.0, 2.0, 3.0), reset]
    assert likely(tmp_path, *sent) == [("timeout-keepalive", "server", False)]


def test_keepalive_that_had_an_answer(tmp_path: Path) -> None:
    answer = Sent(3.0 + 2 * NEAR, CLIENT, SERVER, ACK, 101, 901)
    reset = Sent(4.0, SERVER, CLIENT, RST | ACK, 901, 101)
    sent = [*handshake(), *probes(1.0, 2.0, 3.0), answer, reset]
    assert likely(tmp_path, *sent) == [("reset-by-close", "server", False)]


def test_a_reset_for_want_of_a_socket(tmp_path: Path) -> None:
    late = [
        Sent(4.0, CLIENT, SERVER, ACK, 101, 901, 5),
        Sent(4.0 + 2 * NEAR, SERVER, CLIENT, RST, 901),
    ]
    assert likely(tmp_path, *handshake(), *late) == [("reset-no-socket", "server", False)]


def refused(t: float) -> list[Sent]:
    """Data that the server answers by an RST at once."""
    return [
        Sent(t, CLIENT, SERVER, ACK, 101, 901, 5),
        Sent(t + 2 * NEAR, SERVER, CLIENT, RST, 901),
    ]


def test_a_reset_after_which_the_host_goes_on(tmp_path: Path) -> None:
    """A firewall sent it. Data that left before and is late goes on with nothing."""
    data = Sent(5.0, SERVER, CLIENT, ACK, 901, 101, 5)
    crafted = [("reset-crafted", "server", False)]
    assert likely(tmp_path, *handshake(), *refused(4.0), data) == crafted
    (folder := tmp_path / "late").mkdir()
    none = [("reset-no-socket", "server", False)]
    assert likely(folder, *handshake(), *refused(4.0), replace(data, t=4.005)) == none


def test_a_reset_of_what_a_new_socket_does_not_know(tmp_path: Path) -> None:
    """RFC 9293, section 3.10.7.3: its number is that of the old connection, and it goes on."""
    syn, synack, ack = handshake(1.0)
    old = Sent(1.0 + 2 * NEAR, SERVER, CLIENT, ACK, 5000, 7000)
    reset = Sent(1.0 + 4 * NEAR, CLIENT, SERVER, RST, 7000)
    rest = [replace(each, t=each.t + 1) for each in (syn, synack, ack)]
    assert likely(tmp_path, syn, old, reset, *rest) == []


def test_a_reset_that_answers_what_a_syn_does_not_fit(tmp_path: Path) -> None:
    """RFC 9293, section 3.5.1: of the client's socket it says nothing."""
    sent = [
        Sent(0.0, CLIENT, SERVER, SYN, 100),
        Sent(2 * NEAR, SERVER, CLIENT, ACK, 5000, 7000),
        Sent(4 * NEAR, CLIENT, SERVER, RST, 7000),
    ]
    assert likely(tmp_path, *sent) == []


def test_no_answer(tmp_path: Path) -> None:
    syns = [
        Sent(t, CLIENT, SERVER, SYN, 100, fate="lost" if t < 2 else "") for t in (0.0, 1.0, 3.0)
    ]
    seen = handshake(-1.0, "10.0.0.3:50001", "10.0.0.2:9")
    run = both(tmp_path, sorted([*syns, *seen, LATER], key=lambda s: s.t))
    told = [c for c in causes(run.history) if c.id == "no-answer" and CLIENT in c.text]
    assert [c.text for c in told] == [
        f"client had no answer to 3 SYNs of {CLIENT} -> {SERVER}; 2 lost on their way; an ICMP "
        "error would not show here"
    ]


def test_syns_that_crossed_are_an_answer(tmp_path: Path) -> None:
    crossed = [Sent(0.0, CLIENT, SERVER, SYN, 100), Sent(0.0, SERVER, CLIENT, SYN, 900)]
    run = both(tmp_path, [*crossed, LATER])
    assert [c.text for c in causes(run.history) if c.id == "no-answer" and CLIENT in c.text] == []


def test_what_was_overtaken(tmp_path: Path) -> None:
    data = [Sent(1.0 + n * NEAR / 10, SERVER, CLIENT, ACK, 901 + 10 * n, 101, 10) for n in range(3)]
    sent = [*handshake(), *data, LATER]
    server = pcap(tmp_path / "a", frames(sent, SERVER))
    came = frames(sent, CLIENT)
    (first, _), (last, _) = came[3], came[5]
    came[3], came[5] = (last, came[3][1]), (first, came[5][1])
    run = imported(tmp_path, {"server": server, "client": pcap(tmp_path / "b", sorted(came))})
    assert marks(run)[3:6] == ["out of order", "out of order", ""]


def test_a_keepalive_is_no_retransmission(tmp_path: Path) -> None:
    run = both(tmp_path, [*handshake(), *probes(1.0, 2.0), LATER])
    assert marks(run)[3:5] == ["keepalive", "keepalive"]


# --- Whatever a file has --------------------------------------------------------------------------

ENDS = (SERVER, CLIENT, "10.0.0.3:40001", "10.0.0.9:8000", "127.0.0.1:9")
numbers = st.sampled_from([0, 1, 100, 101, 102, 900, 901, 902, 2**31, 2**32 - 1])
segments = st.builds(
    Sent,
    st.floats(0, 5),
    st.sampled_from(ENDS),
    st.sampled_from(ENDS),
    st.sampled_from([0, SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, SYN | FIN, 63]),
    numbers,
    numbers,
    st.sampled_from([0, 1, 5, 1460]),
    st.booleans(),
    st.sampled_from([0, 1000]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.lists(segments, min_size=1, max_size=25), st.booleans(), st.floats(-4, 4))
def test_any_segments_make_a_run_that_can_be_told(
    tmp_path: Path, sent: list[Sent], two: bool, ahead: float
) -> None:
    """Hosts that keep to no rule: an error that says what is wrong, or a run with its picture,
    causes and verdicts."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    files = {"server": pcap(folder / "a", frames(sent, SERVER))}
    if two:
        files["client"] = pcap(folder / "b", frames(sent, CLIENT, ahead))
    try:
        run = imported(folder, files)
    except UsageError as exc:
        assert "have no segment in common" in str(exc) or "has no TCP segment" in str(exc)
        return
    assert ladders([run])
    claims = folder / "claims.yaml"
    claims.write_text(
        f"title: claims\nhosts: {{server: {{}}, {'client' if two else 'peer'}: {{}}}}\nsteps: []\n"
        "expect:\n"
        "  - path: {server: [SYN-RECV, ESTAB, closed]}\n"
        "  - lasted: {server: ESTAB, for: 1s}\n"
        "  - segments: {from: server, lost: true}\n"
    )
    assert len(judge(run.folder, claims)) == 3
    for host in run.history.hosts:
        for timeline in timelines(run.history, host):
            moments = [span.begin for span in timeline.spans]
            moments += [span.end for span in timeline.spans if span.end]
            for moment in moments:
                assert moment.earliest <= moment.at <= moment.latest
            begins = [span.begin.at for span in timeline.spans]
            assert begins == sorted(begins), timeline
