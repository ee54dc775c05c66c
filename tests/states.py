"""docs/states.svg and docs/states.md: the states of a connection, and the lesson that shows each
transition. Made from the table that labctl judges by (FOLLOWING in labctl/record/looks.py).

UPDATE_GOLDEN=1 has tests/unit/test_states.py write them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from labctl.probes.sockets import State
from labctl.record.looks import FOLLOWING
from labctl.reports.signs import STATES

CLOSED = "closed"
OPEN, CLOSE = "endings/simultaneous_open", "endings/simultaneous_close"
PLACES = {
    CLOSED: (2, 0),
    State.LISTEN: (1, 1),
    State.SYN_SENT: (3, 1),
    State.SYN_RECV: (1, 2),
    State.ESTAB: (1.42, 3),
    State.FIN_WAIT_1: (1, 4),
    State.CLOSE_WAIT: (3, 4),
    State.FIN_WAIT_2: (0, 5),
    State.CLOSING: (2, 5),
    State.LAST_ACK: (3, 5),
    State.TIME_WAIT: (1, 6),
    "gone": (1, 7),
}
"""Columns and rows."""
WIDE, HIGH, COLUMN, ROW, EDGE = 130, 34, 190, 92, 20


@dataclass(frozen=True)
class Transition:
    """From one state to another: by what, and the lesson that shows it, if there is one."""

    old: str
    new: str
    by: str
    lesson: str = ""


TRANSITIONS = (
    Transition(CLOSED, "LISTEN", "listen(2)", "state_walk"),
    Transition(CLOSED, "SYN-SENT", "connect(2) sends a SYN", "state_walk"),
    Transition("LISTEN", "SYN-RECV", "a SYN comes; SYN ACK is sent", "state_walk"),
    Transition("SYN-SENT", "ESTAB", "SYN ACK comes; an ACK is sent", "state_walk"),
    Transition("SYN-SENT", "SYN-RECV", "a SYN comes: both sides connect at once", OPEN),
    Transition("SYN-RECV", "ESTAB", "the ACK comes", "state_walk"),
    Transition("SYN-RECV", "FIN-WAIT-1", "the program closes before the ACK has come"),
    Transition("SYN-RECV", "CLOSE-WAIT", "a FIN comes with the ACK"),
    Transition("ESTAB", "FIN-WAIT-1", "close or shutdown sends a FIN", "state_walk"),
    Transition("ESTAB", "CLOSE-WAIT", "a FIN comes; an ACK is sent", "state_walk"),
    Transition("FIN-WAIT-1", "FIN-WAIT-2", "the ACK of the FIN comes", "fin_wait_2"),
    Transition("FIN-WAIT-1", "TIME-WAIT", "ACK and FIN in one segment; Linux takes 11 and 14"),
    Transition(
        "FIN-WAIT-1", "CLOSING", "a FIN comes before the ACK: both sides close at once", CLOSE
    ),
    Transition("FIN-WAIT-2", "TIME-WAIT", "the FIN comes; an ACK is sent", "state_walk"),
    Transition("FIN-WAIT-2", "gone", "tcp_fin_timeout, if no process has it", "fin_wait_2"),
    Transition("CLOSING", "TIME-WAIT", "the ACK of the FIN comes", CLOSE),
    Transition("CLOSE-WAIT", "LAST-ACK", "close sends a FIN", "state_walk"),
    Transition("LAST-ACK", "gone", "the ACK of the FIN comes", "state_walk"),
    Transition("TIME-WAIT", "gone", "60 s", "eaddrinuse_time_wait"),
)
BESIDE = {(CLOSED, "LISTEN"), (CLOSED, "SYN-SENT"), ("LISTEN", "SYN-RECV")}
"""What FOLLOWING does not have: there a connection begins later. Its ends are not there either."""


def table() -> set[tuple[str, str]]:
    """The transitions that labctl judges by, and those around them."""
    inner = {(str(old), str(new)) for old, following in FOLLOWING.items() for new in following}
    ends = {(old, "gone") for old in ("FIN-WAIT-2", "LAST-ACK", "TIME-WAIT")}
    return inner | ends | BESIDE


def picture() -> str:
    """The picture, as SVG: arrows with numbers that lead to lessons."""
    width, height = 4 * COLUMN + EDGE, 8 * ROW
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        ' aria-label="The states of a TCP connection">',
        f"<style>{style()}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
        '<rect class="paper" width="100%" height="100%"/>',
        *(arrow(number, t) for number, t in enumerate(TRANSITIONS, 1)),
        *(box(str(name)) for name in PLACES),
        *(label(number, t) for number, t in enumerate(TRANSITIONS, 1)),
        "</svg>\n",
    ])  # fmt: skip


def style() -> str:
    def rules(dark: bool) -> Iterator[str]:
        paper, ink = ("#16181d", "#e4e6eb") if dark else ("#ffffff", "#22252b")
        yield f".paper,circle{{fill:{paper}}}text,path{{fill:{ink}}}line,circle{{stroke:{ink}}}"
        for name, colour in STATES.items():
            yield f".{name}{{stroke:{colour.dark if dark else colour.light}}}"

    fixed = (
        "text{font:14px sans-serif;text-anchor:middle;dominant-baseline:central}"
        "rect{fill:none;stroke-width:3}.paper{stroke:none}.closed{stroke:#8c929f}"
        ".unshown{stroke-dasharray:5 4}.striped{stroke-dasharray:9 3}circle+text{font-size:12px}"
    )
    return (
        fixed
        + "".join(rules(False))
        + (f"@media(prefers-color-scheme:dark){{{''.join(rules(True))}}}")
    )


def centre(name: str) -> tuple[float, float]:
    column, row = PLACES[name]
    return EDGE + column * COLUMN + WIDE / 2, EDGE + row * ROW + HIGH / 2


def box(name: str) -> str:
    x, y = centre(name)
    drawn = name if name in STATES else CLOSED
    kind = f"{drawn} striped" if drawn in STATES and STATES[drawn].striped else drawn
    rect = f'<rect class="{kind}" x="{x - WIDE / 2:g}" y="{y - HIGH / 2:g}"'
    return f'{rect} width="{WIDE}" height="{HIGH}" rx="6"/><text x="{x:g}" y="{y:g}">{drawn}</text>'


def ends(t: Transition) -> tuple[float, float, float, float]:
    """Where an arrow begins and ends: on the edges of its boxes."""
    (x1, y1), (x2, y2) = centre(t.old), centre(t.new)
    dx, dy = x2 - x1, y2 - y1
    part = min(WIDE / 2 / abs(dx) if dx else 9, HIGH / 2 / abs(dy) if dy else 9)
    return x1 + dx * part, y1 + dy * part, x2 - dx * part, y2 - dy * part


def arrow(number: int, t: Transition) -> str:
    x1, y1, x2, y2 = ends(t)
    kind = "" if t.lesson else ' class="unshown"'
    return f'<line{kind} x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" marker-end="url(#head)"/>'


def label(number: int, t: Transition) -> str:
    x1, y1, x2, y2 = ends(t)
    x, y = x1 + (x2 - x1) * 0.45, y1 + (y2 - y1) * 0.45
    shown = f'<circle cx="{x:g}" cy="{y:g}" r="10"/><text x="{x:g}" y="{y:g}">{number}</text>'
    said = f"<title>{escape(f'{t.old} to {t.new}: {t.by}')}</title>"
    link = f' href="../scenarios/{t.lesson}.yaml"'
    return f"<a{link}>{said}{shown}</a>" if t.lesson else f"<g>{said}{shown}</g>"


def page() -> str:
    """The page, with a row for each transition."""
    rows = [
        f"| {number} | {t.old} | {t.new if t.new != 'gone' else CLOSED} | {t.by} | {shown(t)} |"
        for number, t in enumerate(TRANSITIONS, 1)
    ]
    return "\n".join([*HEAD, *rows, *FOOT])


def shown(t: Transition) -> str:
    return f"[`{t.lesson}`](../scenarios/{t.lesson}.yaml)" if t.lesson else "–"


HEAD = (
    "# The states of a connection",
    "",
    "Each end of a connection has its own state. Colours are those of `labctl report`. Open the",
    "picture by itself, and its numbers lead to the lessons.",
    "",
    "![The states, and arrows with the numbers of the table](states.svg)",
    "",
    "| | from | to | by | lesson |",
    "| --- | --- | --- | --- | --- |",
)
FOOT = (
    "",
    "Dashed arrows are in RFC 9293, section 3.3.2, and no lesson shows them. An RST ends any state",
    "at once. `labctl run state_walk` goes through most of them; `labctl tour` shows where they",
    "stay.",
    "",
)
