"""A run as Mermaid's sequence diagram: the ladder for places that draw text, such as GitHub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from labctl.ground.plain import plain
from labctl.judge.result import RunResult
from labctl.reports.ladder import ladder_of
from labctl.reports.rows import (
    Arrow,
    Bar,
    Call,
    Gap,
    Judged,
    Ladder,
    Left,
    Life,
    Look,
    Note,
    Return,
    Row,
    Step,
    arrow_words,
    call_words,
    return_words,
    state_words,
    step_words,
)

MOST = 45_000
"""Mermaid draws no text of more than 50,000 characters (maxTextSize)."""
SPECIAL = re.compile(r"[#;%<>&{}\\`\"]")


def diagram(run: RunResult) -> str:
    """The ladder of a run. One that is too long for Mermaid ends with how many rows are missing."""
    return drawn(ladder_of(run))


def drawn(ladder: Ladder) -> str:
    """A ladder; see `diagram`."""
    lines = ["sequenceDiagram"]
    lines += [f"  participant {_id(ladder, host)} as {_safe(host)}" for host in ladder.hosts]
    lines += [f"  Note over {_all(ladder)}: {_safe(ladder.clocks)}"] if ladder.clocks else []
    size = sum(map(len, lines))
    for number, row in enumerate(ladder.rows):
        found = [f"  {line}" for line in _lines(ladder, row)]
        size += sum(len(line) + 1 for line in found)
        if size > MOST:
            left = len(ladder.rows) - number
            lines.append(f"  Note over {_all(ladder)}: {left} more are left out here")
            break
        lines += found
    return "\n".join(lines) + "\n"


def diagrams(runs: Sequence[RunResult]) -> str:
    """The ladders of runs, one after the other."""
    return "\n".join(diagram(run) for run in runs)


def _lines(ladder: Ladder, row: Row) -> Iterator[str]:
    match row:
        case Arrow():
            sender = _id(ladder, row.sender) or _id(ladder, row.receiver)
            receiver = _id(ladder, row.receiver) or sender
            kind = "-x" if row.lost else "->>"
            yield f"{sender}{kind}{receiver}: {_safe(arrow_words(ladder, row))}"
        case Bar():
            yield _beside(ladder, row.host, f"[{state_words(ladder, row)}]")
        case Call():
            yield _beside(ladder, row.host, call_words(row))
        case Return(call=call):
            yield _beside(ladder, row.host, return_words(call))
        case Life() | Note():
            yield _beside(ladder, row.host, row.text)
        case Step():
            yield f"Note over {_all(ladder)}: {row.t:.3f} s ▸ {_safe(step_words(row))}"
        case Judged():
            words = f"{row.verdict.result}: {row.claim}"
            yield f"Note over {_all(ladder)}: {row.t:.3f} s {_safe(words)}"
        case Gap():
            yield f"Note over {_all(ladder)}: ⋮ {row.until - row.t:.1f} s"
        case Left():
            yield f"Note over {_all(ladder)}: ⋮ {_safe(row.text)}"
        case Look():
            pass  # its step is there already, and its text is too long for a note


def _beside(ladder: Ladder, host: str, words: str) -> str:
    side = "left" if host == ladder.hosts[0] else "right"
    return f"Note {side} of {_id(ladder, host)}: {_safe(words)}"


def _id(ladder: Ladder, host: str | None) -> str:
    """A name that is no word of Mermaid, whatever the host's name is."""
    return f"h{ladder.hosts.index(host)}" if host in ladder.hosts else ""


def _all(ladder: Ladder) -> str:
    ends = dict.fromkeys((_id(ladder, ladder.hosts[0]), _id(ladder, ladder.hosts[-1])))
    return ",".join(ends)


def _safe(words: str) -> str:
    """Words that Mermaid shows as they are: its own signs become character codes."""
    return SPECIAL.sub(lambda sign: f"#{ord(sign.group())};", plain(words))
