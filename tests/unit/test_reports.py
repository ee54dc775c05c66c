"""Pictures of runs: of one that was recorded (tests/unit/data/run), and of events made up here.

UPDATE_GOLDEN=1 writes what the reports say now into tests/golden/reports.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labctl import reports
from labctl.check import Verdict
from labctl.errors import UsageError
from labctl.history import (
    CallEvent,
    Event,
    History,
    LabEvent,
    OutputEvent,
    ProcessEvent,
    SocketsEvent,
    StateEvent,
    StepEvent,
    TroubleEvent,
)
from labctl.probes.segments import Captures, Injection, Loss, Segment
from labctl.reports import html, junit, ladder, markdown, mermaid, recorded
from labctl.reports.drawing import draw
from labctl.reports.drawn import CONNECTIONS, LOOK_LINES, ROWS
from labctl.reports.recorded import RecordedRun
from labctl.reports.rungs import Arrow, Bar, Call, Gap, Judged, Ladder, Left, Look, Return, Step
from labctl.reports.shapes import BAND, BANDS, FONTS, LINE, Line, Words, measure, wrap
from tests.fake import HEADER, tcp

RUN = Path(__file__).parent / "data" / "run"
GOLDEN = Path(__file__).parents[1] / "golden" / "reports"
SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3:40000"
ADDRESSES = {"server": "198.18.0.2", "client": "198.18.0.3", "proxy": "198.18.0.4"}
NASTY = "</title><script>alert('&')</script>\x1b[31m|`*_[x](y)\"#;"


class Seen(Captures):
    """Captures that have been read already."""

    def __init__(self, segments: list[Segment]) -> None:
        super().__init__()
        self._given = sorted(segments, key=lambda segment: segment.time)

    def segments(
        self,
        owners: Mapping[str, str],
        origin: float,
        losses: Sequence[Loss] = (),
        injections: Sequence[Injection] = (),
    ) -> list[Segment]:
        return self._given


def segment(t: float, text: str, arrived: float | None = 0.0, **more: object) -> Segment:
    """`client FIN ACK 5 1 len 3`: who sends, what, its numbers. It takes 0.1 ms."""
    words = text.split()
    sender = words.pop(0)
    flags = tuple(word for word in words if word.isupper())
    numbers = [int(word) for word in words if word.isdigit()]
    ends = (SERVER, CLIENT) if sender == "server" else (CLIENT, SERVER)
    found = Segment(
        t=t,
        arrived=None if arrived is None else arrived or t + 0.0001,
        sender=sender,
        receiver="client" if sender == "server" else "server",
        source=ends[0],
        target=ends[1],
        seq=numbers[0],
        ack=numbers[1],
        flags=flags,
        length=numbers[2] if "len" in words else 0,
        window=1000,
    )
    return replace(found, **more)  # type: ignore[arg-type]


HANDSHAKE = [
    segment(0.1, "client SYN 0 0"),
    segment(0.1002, "server SYN ACK 0 1"),
    segment(0.1004, "client ACK 1 1"),
]
CLOSE = [
    segment(0.2, "server FIN ACK 1 1"),
    segment(0.2002, "client ACK 1 2"),
    segment(0.3, "client FIN ACK 1 2"),
    segment(0.3002, "server ACK 2 2"),
]


def history(*events: Event, segments: list[Segment] | None = None) -> History:
    """What these add up to, the lab's first word before them."""
    lab = LabEvent(0.0, "2026-01-02T03:04:05Z", "netns", {"kernel": "6.1.0"}, ADDRESSES)
    found = History([lab, *sorted(events, key=lambda e: e.t)], Seen(segments or []))
    found.add_packets(max((s.time for s in segments or []), default=0.0), "server", b"")
    return found


def look(t: float, host: str, *lines: str, caption: str | None = None) -> SocketsEvent:
    """A look at a host."""
    return SocketsEvent(t, host, "look", "\n".join([HEADER, *lines, ""]), {}, caption)


def step(t: float, text: str, end: float, outcome: str = "done", **more: object) -> list[Event]:
    """A step's beginning and end."""
    index = round(t * 1000)
    return [
        StepEvent(t, index, "begin", text),
        StepEvent(end, index, "end", text, outcome=outcome, **more),  # type: ignore[arg-type]
    ]


def call(t: float, done: float | None, host: str, text: str, **more: object) -> list[Event]:
    """A call's beginning, and its end if it has one."""
    name = text.split(maxsplit=1)[0]
    events: list[Event] = [CallEvent(t, host, host, 7, "enter", text, name)]
    if done is not None:
        events.append(
            CallEvent(done, host, host, 7, "done", text, name, **more)  # type: ignore[arg-type]
        )
    return events


def rows(found: History, *verdicts: Verdict) -> Ladder:
    return ladder.rows(found, ("server", "client"), verdicts)


def bars(found: Ladder, host: str) -> list[tuple[str, float, bool]]:
    """The states of a host's sockets, since when, and whether the kernel said so."""
    return [
        (row.state, row.t, row.exact)
        for row in found.rows
        if isinstance(row, Bar) and row.host == host
    ]


def recorded_run(found: History, **more: object) -> RecordedRun:
    """A run with this history, and nothing of note besides."""
    base = recorded.load(RUN)
    run = replace(base, history=found, verdicts=(), why=(), folder=Path("made-up"))
    return replace(run, **more)  # type: ignore[arg-type]


def golden(name: str, text: str) -> None:
    """Compares with a golden file."""
    text = text.replace(str(RUN), "RUN").replace(RUN.as_posix(), "RUN")
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name}: see UPDATE_GOLDEN above"


def full() -> History:
    """Everything that a ladder can show."""
    syn_lost = segment(0.05, "client SYN 0 0", None)
    data = [segment(0.11 + n / 1e4, f"server PSH ACK {1 + 10 * n} 1 len 10") for n in range(5)]
    acks = [segment(0.11005 + n / 1e4, f"client ACK 1 {11 + 10 * n}") for n in range(5)]
    odd = [
        segment(0.12, "client ACK 1 51", zero_window=True),
        segment(0.13, "server ACK 50 1 len 1", probe=True),
        segment(0.14, "server PSH ACK 41 1 len 10", retransmitted=True),
        replace(segment(0.15, "client RST 9 0", 0.15), t=None, sender=None),
    ]
    other = replace(
        segment(0.45, "client RST ACK 1 1"), source="198.18.0.3:40001", target="198.18.0.4:80",
        receiver="proxy",
    )  # fmt: skip
    listen, estab = tcp("LISTEN", ":8000"), tcp("ESTAB", SERVER, CLIENT)
    return history(
        *step(0.01, "start server", 0.02),
        ProcessEvent(0.015, "server", "server", "start", pid=7),
        *call(0.016, 0.017, "server", "bind :8000", local="0.0.0.0:8000"),
        *call(0.018, 0.0185, "server", "listen 5"),
        *call(0.019, 0.104, "server", "accept", peer=CLIENT),
        look(0.018, "server", listen),
        *step(0.011, "wait server LISTEN", 0.018, "held"),
        ProcessEvent(0.03, "client", "client", "start", pid=7),
        *call(0.04, 0.101, "client", "connect server:8000"),
        StateEvent(0.0499, "client", "198.18.0.3:0", SERVER, "UNCONN", "SYN-SENT"),
        StateEvent(0.1004, "client", CLIENT, SERVER, "SYN-SENT", "ESTAB"),
        look(0.107, "server", listen, estab, caption="connected"),
        OutputEvent(0.16, "client", "client", "hello\nthere\n"),
        TroubleEvent(0.17, "client", "capture", "3 packets were lost"),
        *step(0.19, "kill server", 0.195, label="killed"),
        ProcessEvent(0.194, "server", "server", "gone", signal="KILL"),
        *step(0.4, "sleep 60 s", 60.4),
        *step(60.5, "kill proxy", 60.6, "failed", detail="proxy running; saw it never ran"),
        look(60.7, "server", caption="at the end"),
        segments=[syn_lost, *HANDSHAKE, *data, *acks, *odd, *CLOSE, other],
    )


# --- Golden files ---------------------------------------------------------------------------------


def test_golden_ladders() -> None:
    run = recorded.load(RUN)
    golden("fin_wait_2.txt", ladder.text(run.ladder, 100))
    golden("fin_wait_2-ascii.txt", ladder.text(run.ladder, 80, unicode=False))
    golden("everything.txt", ladder.text(ladder.rows(full(), tuple(ADDRESSES)), 120))


def test_golden_pages() -> None:
    run = recorded.load(RUN)
    failed = Verdict(
        "fail", "server: TIME-WAIT", "TIME-WAIT", "FIN-WAIT-2", 0.3, "a.yaml:7", ("FIN-WAIT-2 x",)
    )
    other = recorded_run(full(), hosts=tuple(ADDRESSES), result="fail", verdicts=(failed,))
    golden("fin_wait_2.html", html.page(run))
    golden("everything.html", html.page(other))
    golden("index.html", html.index([run, other]))
    golden("fin_wait_2.mmd", mermaid.diagram(run))
    golden("everything.mmd", mermaid.diagram(other))
    golden("fin_wait_2.md", markdown.summary([run]))
    golden("two.md", markdown.summary([run, other]))


# --- The ladder -----------------------------------------------------------------------------------


def test_rows_are_in_order_and_hosts_are_the_scenarios() -> None:
    run = recorded.load(RUN)
    times = [row.t for row in run.ladder.rows]
    assert run.hosts == ("server", "client")
    assert times == sorted(times)


def test_states_that_ss_saw_are_put_at_the_segment_that_brought_them() -> None:
    estab = tcp("ESTAB", SERVER, CLIENT), tcp("ESTAB", CLIENT, SERVER)
    found = rows(
        history(
            look(0.09, "client", estab[1]),
            look(0.11, "server", estab[0]),
            look(0.201, "server", tcp("FIN-WAIT-2", SERVER, CLIENT)),
            look(0.19, "client", tcp("CLOSE-WAIT", CLIENT, SERVER)),
            look(0.25, "client", tcp("CLOSE-WAIT", CLIENT, SERVER)),
            look(0.31, "server", tcp("TIME-WAIT", SERVER, CLIENT)),
            look(0.31, "client"),
            look(60.31, "server"),
            segments=[*HANDSHAKE, *CLOSE],
        )
    )
    assert bars(found, "client") == [
        ("ESTAB", pytest.approx(0.1003), False),
        ("CLOSE-WAIT", pytest.approx(0.2001), False),
        ("", 0.31, False),
    ]
    assert bars(found, "server") == [
        ("ESTAB", pytest.approx(0.1005), False),
        ("FIN-WAIT-2", pytest.approx(0.2003), False),
        ("TIME-WAIT", pytest.approx(0.3001), False),
        ("", 60.31, False),
    ]


def test_the_tracepoint_wins_and_ss_adds_minisockets() -> None:
    found = rows(
        history(
            StateEvent(0.1, "client", "198.18.0.3:0", SERVER, "UNCONN", "SYN-SENT"),
            StateEvent(0.1003, "client", CLIENT, SERVER, "SYN-SENT", "ESTAB"),
            look(0.15, "client", tcp("ESTAB", CLIENT, SERVER)),
            StateEvent(0.2, "client", CLIENT, SERVER, "ESTAB", "FIN-WAIT-1"),
            StateEvent(0.2002, "client", CLIENT, SERVER, "FIN-WAIT-1", "FIN-WAIT-2"),
            StateEvent(0.3, "client", CLIENT, SERVER, "FIN-WAIT-2", "UNCONN"),
            look(0.29, "client", tcp("FIN-WAIT-2", CLIENT, SERVER)),
            look(0.32, "client", tcp("TIME-WAIT", CLIENT, SERVER)),
            look(60.3, "client"),
        )
    )
    assert bars(found, "client") == [
        ("SYN-SENT", 0.1, True),
        ("ESTAB", 0.1003, True),
        ("FIN-WAIT-1", 0.2, True),
        ("FIN-WAIT-2", 0.2002, True),
        ("TIME-WAIT", 0.3, False),
        ("", 60.3, False),
    ]


def test_a_socket_may_become_a_minisocket_in_the_state_that_it_is_in() -> None:
    found = rows(
        history(
            look(0.0999, "server", tcp("ESTAB", SERVER, CLIENT)),  # ran a little later
            StateEvent(0.1003, "server", SERVER, CLIENT, "LISTEN", "SYN-RECV"),
            StateEvent(0.1004, "server", SERVER, CLIENT, "SYN-RECV", "ESTAB"),
            StateEvent(0.2, "server", SERVER, CLIENT, "ESTAB", "FIN-WAIT-1"),
            StateEvent(0.2002, "server", SERVER, CLIENT, "FIN-WAIT-1", "FIN-WAIT-2"),
            StateEvent(0.2002, "server", SERVER, CLIENT, "FIN-WAIT-2", "UNCONN"),
            look(0.21, "server", tcp("FIN-WAIT-2", SERVER, CLIENT)),
            look(5.21, "server"),
        )
    )
    assert bars(found, "server") == [
        ("SYN-RECV", 0.1003, True),
        ("ESTAB", 0.1004, True),
        ("FIN-WAIT-1", 0.2, True),
        ("FIN-WAIT-2", 0.2002, True),
        ("", 5.21, False),
    ]


def test_a_listener_begins_with_listen_and_ends_with_its_process() -> None:
    old, new = (tcp("LISTEN", ":8000", more=f"ino:{n}") for n in (11, 12))
    found = rows(
        history(
            ProcessEvent(0.01, "server", "server", "start"),
            look(0.018, "server", old),
            *call(0.019, 0.02, "server", "listen 5"),
            ProcessEvent(0.2, "server", "server", "gone", signal="KILL"),
            ProcessEvent(0.21, "server", "server", "start"),
            *call(0.22, 0.23, "server", "listen 5"),
            look(0.22, "server", new),
        )
    )
    assert bars(found, "server") == [
        ("LISTEN", 0.02, False), ("", 0.2, False), ("LISTEN", 0.23, False)
    ]  # fmt: skip


def test_a_look_that_is_not_understood_changes_no_state() -> None:
    found = rows(
        history(
            look(0.1, "server", tcp("LISTEN", ":8000")),
            SocketsEvent(0.2, "server", "look", "who knows", {}, "odd"),
        )
    )
    assert bars(found, "server") == [("LISTEN", 0.1, False)]
    assert "not understood" in found.looks[0].lines[0]


def test_like_segments_become_one_arrow_and_odd_ones_never() -> None:
    data = [segment(1 + n / 1e5, f"server ACK {n} 1 len 10") for n in range(50)]
    special = [
        segment(1.1, "client ACK 1 9", zero_window=True),
        segment(1.2, "client ACK 1 9", zero_window=True),
        segment(1.3, "server ACK 8 1 len 1", probe=True),
        segment(1.4, "server ACK 8 1 len 1", probe=True),
        *(segment(1.5 + n / 1e5, f"server ACK {n} 1 len 10", None) for n in range(5)),
        *(segment(1.6 + n / 1e5, "server RST 1 1") for n in range(5)),
    ]
    found = [r for r in rows(history(segments=data + special)).rows if isinstance(r, Arrow)]
    assert [(a.label, a.count) for a in found[:1]] == [("50 segments, 500 bytes", 50)]
    assert len(found) == 1 + len(special)
    assert [a.lost for a in found[5:10]] == [True] * 5


def test_other_events_part_like_segments() -> None:
    data = [segment(1 + n / 1e3, f"server ACK {n} 1 len 10") for n in range(20)]
    killed = ProcessEvent(1.0095, "client", "client", "gone")
    started = ProcessEvent(0.5, "client", "client", "start")
    found = rows(history(started, killed, segments=data))
    assert [r.count for r in found.rows if isinstance(r, Arrow)] == [10, 10]


def test_a_call_that_waits_returns_later() -> None:
    found = rows(
        history(
            *call(0.05, 0.12, "server", "accept", peer=CLIENT),
            *call(0.13, 0.1301, "server", "send x", result=1),
            *call(0.14, None, "server", "wait"),
            segments=HANDSHAKE,
        )
    )
    calls = [row for row in found.rows if isinstance(row, Call)]
    assert [(c.text, c.result, c.until, c.waits) for c in calls] == [
        ("accept", f"from {CLIENT}", 0.12, True),
        ("send x", "1", 0.1301, False),
        ("wait", "", None, True),
    ]
    assert [row.call.text for row in found.rows if isinstance(row, Return)] == ["accept"]


def test_verdicts_stand_for_their_steps_and_follow_what_they_saw() -> None:
    verdict = Verdict("pass", "server: LISTEN", "LISTEN within 5 s", "LISTEN", 0.019, "a.yaml:3")
    found = rows(
        history(
            *step(0.001, "start server", 0.002),
            *step(0.003, "wait server LISTEN", 0.01863, "held"),
            look(0.01863, "server", tcp("LISTEN", ":8000")),
            *call(0.0191, 0.0193, "server", "listen 5"),
        ),
        verdict,
    )
    kinds = [type(row) for row in found.rows]
    assert kinds == [Step, Call, Bar, Judged]
    assert [row.claim for row in found.rows if isinstance(row, Judged)] == [
        "server: LISTEN within 5 s"
    ]


def test_long_silence_is_folded() -> None:
    found = rows(full())
    assert [(gap.t, round(gap.until - gap.t, 1)) for gap in found.rows if isinstance(gap, Gap)] == [
        (pytest.approx(0.4501), 60.0)
    ]
    assert "⋮ 60.0 s" in ladder.text(found, 100)


def test_looks_with_captions_are_kept() -> None:
    found = rows(full())
    assert [(x.host, x.caption) for x in found.looks] == [
        ("server", "connected"), ("server", "at the end")
    ]  # fmt: skip
    assert found.looks[1].lines == ("no sockets",)
    assert isinstance(found.rows[-1], Look)


def test_connections_are_told_apart() -> None:
    found = rows(full())
    assert found.connections == ((CLIENT, SERVER), ("198.18.0.3:40001", "198.18.0.4:80"))
    assert "#2 RST ACK" in ladder.text(found, 100)


# --- At a terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_text_fits(width: int) -> None:
    for hosts in (("server", "client"), tuple(ADDRESSES)):
        text = ladder.text(ladder.rows(full(), hosts), width)
        assert max(map(len, text.splitlines())) <= width


def test_text_without_unicode_is_ascii() -> None:
    text = ladder.text(rows(full()), 100, unicode=False)
    assert text.isascii()
    assert "x" in next(line for line in text.splitlines() if "[lost]" in line)


def test_styled_text_is_the_same_in_colour() -> None:
    found = rows(full())
    plain = [line.rstrip() for line in ladder.styled(found, 100).plain.splitlines()]
    assert plain == ladder.text(found, 100).splitlines()


# --- Pages ----------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Every tag with its attributes; unclosed and crossed tags are errors."""

    VOID = ("meta", "br", "path", "line", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_pages_refer_to_nothing_outside() -> None:
    run = recorded.load(RUN)
    for text in (html.page(run), html.page(recorded_run(full())), html.index([run])):
        tags = _Page(text).tags
        assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in tags}
        assert not [a for _, a in tags if "src" in a or any(name.startswith("on") for name in a)]
        assert not re.search(r"url\(|@import|https?:", text.replace(SVG_NAMESPACE, ""))


SVG_NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'


def nasty() -> RecordedRun:
    """A run whose every text is up to something."""
    found = history(
        *step(0.01, NASTY, 0.02, "failed", detail=NASTY),
        ProcessEvent(0.03, NASTY, "server", "start"),
        CallEvent(0.04, NASTY, "server", 3, "enter", f"send {NASTY}", "send"),
        OutputEvent(0.05, NASTY, "server", NASTY),
        look(0.06, "server", caption=NASTY),
    )
    verdict = Verdict("fail", NASTY, NASTY, NASTY, 0.02, NASTY, (NASTY,))
    texts = dict.fromkeys(("scenario", "title", "about", "source", "text", "reason"), NASTY)
    more = {"why": (NASTY,), "refs": (NASTY,), "variant": {NASTY: NASTY}, "verdicts": (verdict,)}
    return recorded_run(found, **texts, **more, environment={"kernel": NASTY})


def test_pages_escape_everything() -> None:
    run = nasty()
    for text in (html.page(run), html.index([run])):
        _Page(text)
        assert "<script" not in text
        assert "&lt;script&gt;" in text


def test_drawings_are_well_formed() -> None:
    for run in (recorded.load(RUN), recorded_run(full(), hosts=tuple(ADDRESSES)), nasty()):
        drawings = re.findall(r"<svg.*?</svg>", html.page(run), re.DOTALL)
        assert len(drawings) >= 2
        for svg in drawings:
            ElementTree.fromstring(svg)


def slow() -> History:
    """Segments that are long under way, and cross; words that are long."""
    return history(
        *call(0.5, 0.9, "client", f"send {'x' * 300}", result=300),
        *call(1.05, 1.15, "server", "recv", errno="ECONNRESET"),
        *step(1.06, f"snapshot {'a long name ' * 30}", 1.07),
        look(1.08, "server", *(tcp("ESTAB", SERVER, f"198.18.0.3:{40000 + n}") for n in range(9)),
             caption="crowded"),
        OutputEvent(1.09, "client", "client", "\N{CJK UNIFIED IDEOGRAPH-6F22}" * 100),
        segments=[
            segment(1 + n / 200, f"server PSH ACK {n} 1 len 9", 1.3 + n / 100, retransmitted=True)
            for n in range(9)
        ] + [segment(1.02 + n / 100, f"client ACK 1 {n}", None if n % 2 else 1.4,
                     duplicate_ack=True, zero_window=True) for n in range(9)],
    )  # fmt: skip


DRAWN: dict[str, Callable[[], RecordedRun]] = {
    "fin_wait_2": lambda: recorded.load(RUN),
    "two hosts": lambda: recorded_run(full(), hosts=("server", "client")),
    "three hosts": lambda: recorded_run(full(), hosts=tuple(ADDRESSES)),
    "nasty": nasty,
    "slow": lambda: recorded_run(slow()),
}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", DRAWN)
def test_no_two_texts_of_a_drawing_touch(name: str, narrow: bool) -> None:
    drawing = draw(DRAWN[name]().ladder, narrow)
    boxes = []
    for shape in drawing.shapes:
        for part in shape.parts:
            if not isinstance(part, Words):
                continue
            for number, line in enumerate(part.lines):
                width = measure(line, part.style)
                left = part.x - {"start": 0, "middle": width / 2, "end": width}[part.anchor]
                top, _ = part.span
                assert left >= 0, line
                assert left + width <= drawing.width, line
                boxes.append((top + number * LINE, left, left + width, line))
    boxes.sort()
    for n, (top, left, right, line) in enumerate(boxes):
        for other, begin, end, words in boxes[n + 1 :]:
            if other >= top + 11:
                break
            assert begin >= right or end <= left, (line, words)


@pytest.mark.parametrize("name", DRAWN)
def test_a_narrow_drawing_of_two_hosts_fits_a_small_screen(name: str) -> None:
    run = DRAWN[name]()
    assert len(run.hosts) > 2 or draw(run.ladder, narrow=True).width <= 390


def test_drawings_are_cut_where_no_text_is() -> None:
    drawing = draw(recorded_run(many(50)).ladder)
    assert sum(band.height for band in drawing.bands) == drawing.height
    assert max(band.height for band in drawing.bands) < 2 * BAND
    assert sum(band.body.count("<text") for band in drawing.bands) == sum(
        isinstance(part, Words) for shape in drawing.shapes for part in shape.parts
    )


def test_what_lives_long_is_not_drawn_over_and_over() -> None:
    looks = [look(n / 10, "server", *(tcp("ESTAB", SERVER, f"198.18.0.3:{40000 + m}")
                                      for m in range(n))) for n in range(200)]  # fmt: skip
    drawing = draw(recorded_run(history(*looks)).ladder)
    assert len(drawing.bands) <= BANDS


def test_an_arrow_falls_while_it_is_under_way() -> None:
    found = draw(recorded_run(slow()).ladder)
    falls = [
        part.y2 - part.y1
        for shape in found.shapes
        for part in shape.parts
        if isinstance(part, Line) and part.tip == "head"
    ]
    assert min(falls) > 20


@pytest.mark.parametrize("room", [30, 60, 100, 1000])
def test_words_are_wrapped_to_their_room(room: float) -> None:
    words = "server: no connection within 4.5..7 s of killed abcdefghijklmnopqrstuvwxyz"
    for style in FONTS:
        lines = wrap(words, style, room, 99)
        assert max(measure(line, style) for line in lines) <= room
        assert "".join(lines).replace(" ", "") == words.replace(" ", "")
        short = wrap(words, style, room, 2)
        assert len(short) <= 2
        assert (short == lines) is (not short[-1].endswith("…"))
    assert wrap("within 5 s", "step", measure("within 5", "step")) == ("within", "5 s")


def test_pages_keep_what_is_drawn_by_letters() -> None:
    assert html.paragraphs("One\ntwo.\n\n    a -> b\n      c\n\nThree.") == [
        ("p", "One\ntwo."), ("pre", "a -> b\n  c"), ("p", "Three.")
    ]  # fmt: skip


def test_pages_of_runs_whose_folders_are_called_the_same(tmp_path: Path) -> None:
    runs = [
        replace(recorded.load(RUN), folder=Path(folder), title=f"Run {n}")
        for n, folder in enumerate(["a/one", "b/one", "c/ONE", "d/index", "e/one-2"])
    ]
    reports.write("html", runs, tmp_path / "index.html")
    index = (tmp_path / "index.html").read_text()
    links = re.findall(r'<a href="([^"]+)"', index)
    assert links == ["one.html", "one-2.html", "ONE-3.html", "index-2.html", "one-2-2.html"]
    for n, link in enumerate(links):
        assert f"<h1>Run {n}</h1>" in (tmp_path / link).read_text()


def test_markdown_and_mermaid_keep_to_their_lines() -> None:
    run = nasty()
    text = markdown.summary([run])
    assert "<script" not in re.sub(r"^    .*$", "", text, flags=re.MULTILINE).replace("\\<", "")
    assert "\x1b" not in mermaid.diagram(run)
    for line in mermaid.diagram(run).splitlines()[1:]:
        words = re.sub(r"#\d+;", "", line)
        assert not re.search(r"[#;<>%`]", words.replace("->>", ""))


def test_junit_is_well_formed() -> None:
    assert len(ElementTree.fromstring(junit.document([nasty()]))) == 1


def test_mermaid_is_cut_where_it_would_be_too_long() -> None:
    text = mermaid.diagram(recorded_run(many(2500)))
    assert len(text) < 50_000
    assert re.search(r"Note over h0,h1: \d+ more are left out here\n$", text)


# --- Recorded runs --------------------------------------------------------------------------------


def test_load() -> None:
    run = recorded.load(RUN)
    assert (run.label, run.result, run.hosts) == ("fin_wait_2", "pass", ("server", "client"))
    assert run.about.startswith("The server is killed")
    assert len(run.verdicts) == 9
    assert run.place == "netns, kernel 6.1.0, Debian GNU/Linux 12 (bookworm)"


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda path: path.rmdir(), "there is no such folder"),
        (lambda path: None, "no history.jsonl and no scenario.yaml in it"),
        (lambda path: shutil.copytree(RUN, path / "one"), "it holds 1, such as one"),
    ],
)
def test_a_folder_that_is_no_run(
    tmp_path: Path, arrange: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    arrange(folder)
    with pytest.raises(UsageError, match=f"{message}; give a folder that `labctl run` recorded"):
        recorded.load(folder)


def test_a_run_that_was_cut_short(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "result.json").unlink()
    path = folder / "history.jsonl"
    path.write_text(path.read_text()[:-30])
    run = recorded.load(folder)
    assert run.result == "error"
    assert run.reason == "the run was cut short: it left no result"
    assert "cut short" in html.page(run)


def test_a_run_that_was_skipped(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "history.jsonl").write_text("")
    result = json.loads((RUN / "result.json").read_text())
    result["runs"][0].update(result="skip", reason="no root", verdicts=[], why=[])
    (folder / "result.json").write_text(json.dumps(result))
    run = recorded.load(folder)
    assert (run.result, run.hosts) == ("skip", ("server", "client"))
    assert "the lab was not up" in html.page(run)
    assert "no root" in markdown.summary([run])


@pytest.mark.parametrize("text", ["", "[]", '{"runs": []}', '{"runs": [7]}', '{"runs": [{}]}'])
def test_a_result_that_is_none(tmp_path: Path, text: str) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "result.json").write_text(text)
    with pytest.raises(UsageError, match="no result document"):
        recorded.load(folder)


def test_a_history_that_is_none(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "history.jsonl").write_text("what\n")
    with pytest.raises(UsageError, match=re.escape(f"{folder}: history.jsonl:1: no event")):
        recorded.load(folder)


# --- Long runs ------------------------------------------------------------------------------------


def many(rounds: int) -> History:
    """Four events and two segments a round, none of them like the one before."""
    events: list[Event] = []
    segments = []
    for n in range(rounds):
        t = n / 100
        state = "ESTAB" if n % 2 else "CLOSE-WAIT"
        events += call(t, t + 0.001, "client", f"send {n}", result=n)
        events += [look(t + 0.002, "server", tcp(state, SERVER, CLIENT))]
        events += [ProcessEvent(t + 0.003, "server", "server", "start")]
        segments += [
            segment(t + 0.004, f"client PSH ACK {n} 1 len 1", None),
            segment(t + 0.006, f"client PSH ACK {n} 1 len 1", retransmitted=True),
        ]
    return history(*events, segments=segments)


RENDERERS: dict[str, Callable[[RecordedRun], object]] = {
    "rows": lambda run: run.ladder,
    "text": lambda run: ladder.text(run.ladder, 100),
    "html": html.page,
    "mermaid": mermaid.diagram,
    "markdown": lambda run: markdown.summary([run]),
}


def short_lives(count: int) -> History:
    """Connections, one after another, each of which `ss` saw in two states."""
    states = [(n / 100 + later, n, state) for n in range(count)
              for later, state in ((0.0, "ESTAB"), (0.005, "TIME-WAIT"))]  # fmt: skip
    return history(*(look(t, "server", tcp(state, SERVER, f"198.18.0.3:{20000 + n}"))
                     for t, n, state in states))  # fmt: skip


LONG: dict[str, Callable[[int], History]] = {"many": many, "short lives": short_lives}


@pytest.mark.parametrize("made", LONG)
@pytest.mark.parametrize("name", RENDERERS)
def test_what_is_long_takes_longer_in_proportion(name: str, made: str) -> None:
    def seconds(rounds: int) -> float:
        found = []
        for _ in range(2):
            run = recorded_run(LONG[made](rounds))
            if name != "rows":
                assert len(run.ladder.rows) > 2 * min(rounds, CONNECTIONS)
            began = time.process_time()
            RENDERERS[name](run)
            found.append(time.process_time() - began)
        return min(found)

    RENDERERS[name](recorded_run(many(2)))  # the templates are read once
    few, lots = seconds(400), seconds(2000)
    assert lots < 12 * few + 0.05  # 25 times as long, if each looked at all others


def test_a_page_that_is_long_has_one_drawing() -> None:
    short, long = (html.page(recorded_run(many(rounds))) for rounds in (50, 2500))
    assert 'class="narrow"' in short
    assert 'class="narrow"' not in long


def crowd(count: int) -> list[Segment]:
    """The SYNs of so many connections, a millisecond apart, and their answers."""
    found = []
    for n in range(count):
        caller = f"198.18.0.3:{20000 + n}"
        syn = segment(1 + n / 1e3, "client SYN 0 0")
        answer = segment(1.0005 + n / 1e3, "server SYN ACK 0 1")
        found += [replace(syn, source=caller), replace(answer, target=caller)]
    return found


def test_of_thousands_of_connections_some_are_drawn_and_the_others_told_of() -> None:
    few, all_of_them = (
        recorded_run(history(segments=crowd(count))) for count in (CONNECTIONS, CONNECTIONS + 700)
    )
    assert few.ladder.left == []
    assert len(few.ladder.connections) == len(all_of_them.ladder.connections) == CONNECTIONS
    words = "700 of 800 connections, and 1,400 segments of theirs, are not drawn"
    (left,) = all_of_them.ladder.left
    assert left.startswith(words)
    (row,) = (row for row in all_of_them.ladder.rows if isinstance(row, Left))
    assert row.t == pytest.approx(1 + CONNECTIONS / 1e3)
    assert "700 of 800 connections" in ladder.text(all_of_them.ladder, 200)
    assert words in html.page(all_of_them)
    assert len(html.page(all_of_them)) < 1.1 * len(html.page(few))


def test_connections_that_something_is_about_are_drawn_before_others() -> None:
    segments = crowd(CONNECTIONS + 700)
    lost = replace(segments[-1], t=2.5, arrived=None, dropped=3)
    named = "ESTAB 198.18.0.2:8000 -> [::ffff:198.18.0.3]:20798"
    verdict = Verdict("pass", "server: ESTAB", "ESTAB", "ESTAB", 2.0, "x.yaml:1", (named,))
    called = CallEvent(2.2, "client", "client", 1, "done", "connect", "connect",
                       local="198.18.0.3:20797", peer=SERVER)  # fmt: skip
    run = recorded_run(history(called, segments=[*segments, lost]), verdicts=(verdict,))
    callers = {end for ends in run.ladder.connections for end in ends}
    assert {f"198.18.0.3:{port}" for port in (20000, 20797, 20798, 20799)} <= callers
    assert len(run.ladder.connections) == CONNECTIONS


def test_a_time_in_which_only_what_is_left_out_goes_on_is_not_called_quiet() -> None:
    segments = crowd(CONNECTIONS + 700)
    ended = ProcessEvent(30.0, "client", "client", "start")
    run = recorded_run(history(ended, segments=segments))
    assert [gap.quiet for gap in run.ladder.rows if isinstance(gap, Gap)][-1] is False
    assert "of what is left out" in html.page(run)


def test_of_too_many_rows_those_amid_are_left_out() -> None:
    calls = [call(n / 100, n / 100 + 0.001, "client", f"send {n}", result=n)
             for n in range(ROWS + 50)]  # fmt: skip
    amid = step(ROWS / 200, "kill server", ROWS / 200 + 0.001)
    run = recorded_run(history(*chain.from_iterable(calls), *amid,
                               look(0.0, "server", tcp("ESTAB", SERVER, CLIENT))))  # fmt: skip
    assert len(run.ladder.rows) <= ROWS + 3
    assert any(isinstance(row, Step) and row.text == "kill server" for row in run.ladder.rows)
    (words,) = run.ladder.left
    assert re.match(r"5\d rows are left out from here to \d+\.\d{3} s", words)
    draw(run.ladder)


def test_a_look_at_thousands_of_sockets_tells_of_some() -> None:
    sockets = [tcp("ESTAB", SERVER, f"198.18.0.3:{20000 + n}") for n in range(2000)]
    run = recorded_run(history(look(0.1, "server", *sockets, caption="now")))
    (found,) = run.ladder.looks
    assert found.lines[-1] == f"and {2000 - LOOK_LINES:,} more"
    assert len(found.lines) == LOOK_LINES + 1


def test_many_connections_are_drawn_side_by_side() -> None:
    sockets = [tcp("ESTAB", SERVER, f"198.18.0.3:{40000 + n}") for n in range(CONNECTIONS)]
    run = recorded_run(history(look(0.1, "server", *sockets), look(5.0, "server")))
    drawing = draw(run.ladder)
    assert drawing.width < 1400
    assert run.ladder.number(CONNECTIONS) == f"#{CONNECTIONS}"
