"""Results for a person at a terminal, and live progress while a lab runs."""

from __future__ import annotations

import shlex
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from labctl.ground.invoked import command
from labctl.ground.names import told_apart
from labctl.ground.plain import plain
from labctl.judge.accounts import account_lines, ended_meanwhile
from labctl.judge.check import Verdict
from labctl.judge.explain import FOREMOST, foremost
from labctl.judge.result import RunResult
from labctl.language.scenario import Scenario
from labctl.language.values import brief
from labctl.probes.sockets import Socket, describe_socket
from labctl.record.events import Event, SocketsEvent, StepEvent
from labctl.record.history import History
from labctl.record.holders import described
from labctl.reports import tables
from labctl.reports.ladder_text import ladders, styled_ladders
from labctl.reports.rows import behind, claim_words
from labctl.reports.signs import OUTCOMES, RESULTS
from labctl.reports.tables import words as _text
from labctl.run.runner import WAS_INTERRUPTED

if TYPE_CHECKING:
    from labctl.judge.causes.cause import Cause
    from labctl.judge.holders import Holder
    from labctl.judge.result import RunResult
    from labctl.lab.lab import Lab
    from labctl.reports.comparison import Comparison
    from labctl.run.workers import Doing

SOCKETS_SHOWN = 6
STEPS_SHOWN = 7


# --- Results --------------------------------------------------------------------------------------


def print_runs(
    runs: Sequence[RunResult], out: Console, seconds: float, cut_short: str = ""
) -> None:
    """One run in full. Of several: in full those that did not pass, a line for each, how many
    seconds all of it took, and why some are missing."""
    if len(runs) == 1:
        _print_run(runs[0], out)
        _print_where(runs, out)
        return
    for run in runs:
        if run.result not in ("pass", "skip") and run.reason != WAS_INTERRUPTED:
            _print_run(run, out)
            _print_where([run], out)
            out.print()
    table = tables.table("", "scenario", "variant", "seconds", "")
    names = told_apart((run.label, run.source) for run in runs)
    for run, name in zip(runs, names, strict=True):
        style = RESULTS[run.result].style
        table.add_row(
            Text(f"{RESULTS[run.result].sign} {run.result}", style),
            _text(run.scenario + name.removeprefix(run.label)),
            _text(run.case),
            f"{run.seconds:.1f}",
            _text(run.reason or ""),
        )
    out.print(table)
    out.print(_totals(runs, seconds) + (f", {cut_short}" if cut_short else ""))
    _print_where(runs, out)


def _print_where(runs: Sequence[RunResult], out: Console) -> None:
    """The command that shows them all, as one can type it here."""
    words = ["report", *map(shlex.quote, _naming([run.folder for run in runs]))]
    out.print(_text(f"  recorded; see it all: {command()} {' '.join(words)}"), soft_wrap=True)


def _naming(folders: Sequence[Path]) -> list[str]:
    """Arguments that name these runs and no others: a single one by itself; several by a folder
    that has no others, or as the last ones."""
    if len(folders) == 1:
        return [str(folders[0])]
    parent = folders[0].parent
    there = {path.parent for path in parent.glob("*/history.jsonl")}
    return [str(parent)] if there == set(folders) else ["--last"]


def _totals(runs: Sequence[RunResult], seconds: float) -> Text:
    backends = ", ".join(sorted({run.backend for run in runs}))
    counts = Text(", ").join(_counts(runs))
    return counts.append(f" of {len(runs)} on {backends} in {seconds:.1f} s")


def _counts(runs: Sequence[RunResult]) -> list[Text]:
    counts = {result: sum(run.result == result for run in runs) for result in RESULTS}
    return [Text(f"{n} {r}", RESULTS[r].style) for r, n in counts.items() if n]


def _print_run(run: RunResult, out: Console) -> None:
    out.print(_text(run.label, "bold"), _text(run.title))
    for event in run.history.events.of(StepEvent):
        if event.phase == "end" and event.verb == "snapshot":
            _print_sides(event, run, out)
    print_verdicts(run.verdicts, out)
    _print_lines(account_lines(run.processes), out)
    _print_why(run, out)
    known = run.environment
    kernel = f"kernel {known['kernel']}" if known.get("kernel") else None
    where = [word for word in (run.backend, kernel, known.get("os"), known.get("engine")) if word]
    reason = f": {run.reason}" if run.reason else ""
    seconds = f"{run.seconds:.1f} s"
    if "virtual time" in (known.get("engine") or ""):
        seconds = f"{run.lab_seconds:.1f} s by the lab's clock, in {seconds}"
    words = _text(f"{reason}  {seconds} on {', '.join(where)}")
    out.print(Text(run.result.upper(), RESULTS[run.result].style) + words)


def _print_why(run: RunResult, out: Console) -> None:
    """The causes that matter most, and what no cause says: all of that in full if the run did not
    pass, else a line of each."""
    causes = foremost(run.causes, run.verdicts, run.history)
    if run.result not in ("pass", "skip"):
        for _, cause in causes[:FOREMOST]:
            out.print(Padding(_text(f"Why: {cause.text}"), (0, 0, 0, 2)))
            if cause.cure:
                out.print(Padding(_text(f"do: {cause.cure}", "dim"), (0, 0, 0, 7)))
        for sentence in run.beside:
            out.print(Padding(_text(f"Why: {sentence}"), (0, 0, 0, 2)))
    else:
        told = [*(cause.brief for _, cause in causes), *run.beside]
        for words in told[:FOREMOST]:
            out.print(_text(f"  Why: {words}"), no_wrap=True, overflow="ellipsis")
    left = len(causes) - FOREMOST
    if left > 0 or (causes and run.result in ("pass", "skip")):
        more = f"{left} more" if left > 0 else "in full"
        where = shlex.quote(str(run.folder))
        words = f"  {more}, and what to do: {command()} explain {where}"
        out.print(_text(words, "dim"), soft_wrap=True)


def _print_sides(step: StepEvent, run: RunResult, out: Console) -> None:
    """Both sides' sockets at a snapshot."""
    seen: dict[str, SocketsEvent] = {}
    captions: Counter[str] = Counter()  # of this step: of each host, and of binds that failed then
    for event in run.history.events.of(StepEvent, SocketsEvent):
        if isinstance(event, StepEvent) and event.phase == "begin":
            captions.clear()
        if isinstance(event, SocketsEvent):
            seen[event.host] = event
            captions.update([event.caption] if event.caption else [])
        if event is step:
            break
    for caption, _ in captions.most_common(1):
        out.print(_text(f"  {brief(caption)}", "bold"), f" at {step.t:.3f} s")
    sides = [
        (host, line)
        for host in run.hosts
        for line in _lines(seen[host].sockets, partial(described, run.history, seen[host]))
    ]
    out.print(Padding(by_host(sides), (0, 0, 0, 4)))


def by_host(lines: Iterable[tuple[str, str]]) -> Table:
    """Lines, each beside the name of its host."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(min_width=10, no_wrap=True)
    table.add_column(overflow="fold")
    for host, line in lines:
        table.add_row(_text(host), _text(line))
    return table


def _lines(sockets: Sequence[Socket], words: Callable[[Socket], str]) -> list[str]:
    """A line for each socket; of many it counts those that it leaves out."""
    lines = [words(socket) for socket in sockets[:SOCKETS_SHOWN]]
    if len(sockets) > SOCKETS_SHOWN:
        lines.append(f"and {len(sockets) - SOCKETS_SHOWN} more")
    return lines or ["no sockets"]


def print_holders(port: int, found: Sequence[Holder], out: Console) -> None:
    """What holds a port now."""
    if not found:
        out.print(_text(f"nothing holds TCP port {port}: a bind to it works"))
    for holder in found:
        who = f", of {', '.join(holder.processes)}" if holder.processes else ""
        out.print(Text(f"{holder.count} {holder.state}", "bold") + _text(who))
        more = holder.count - len(holder.sockets)
        lines = [*holder.sockets, *([f"and {more} more"] if more else [])]
        _print_lines(lines, out)
        out.print(Padding(_text(holder.blocks), (0, 0, 0, 2)))
        out.print(Padding(_text(f"do: {holder.cure}", "dim"), (0, 0, 0, 2)))


ALIKE = 3
"""So many causes of one kind at one host, with one cure on the same grounds, are printed."""


def print_causes(found: Sequence[tuple[str, Sequence[Cause]]], out: Console) -> None:
    """The causes of runs, each with its proof and its cure; of those alike ALIKE."""
    for label, causes in found:
        out.print(_text(label, "bold"))
        if not causes:
            out.print(_text("  nothing that needs a cause, or the record does not show it", "dim"))
        alike: Counter[tuple[str, str, str, tuple[str, ...]]] = Counter()
        for cause in causes:
            kind = cause.id, cause.host, cause.cure, cause.refs
            alike[kind] += 1
            if alike[kind] > ALIKE:
                continue
            sure = "" if cause.certain else ", not certain"
            out.print(
                Text(f"  {cause.id}", RESULTS["unknown"].style)
                + _text(f"  {cause.host}, {cause.at:.3f} s{sure}", "dim")
            )
            out.print(Padding(_text(cause.text), (0, 0, 0, 4)))
            for word, lines in (
                ("do", [cause.cure] if cause.cure else []),
                ("by", cause.evidence),
                ("see", cause.refs),
            ):
                for line in lines:
                    out.print(Padding(_text(f"{word}: {line}", "dim"), (0, 0, 0, 6)))
        for (name, host, *_), number in alike.items():
            if more := max(0, number - ALIKE):
                told = f"  {more} more {name} alike, {host} (labctl explain --format json)"
                out.print(_text(told, "dim"))


def print_verdicts(verdicts: Sequence[Verdict], out: Console) -> None:
    """Only verdicts, and the reasons for those that did not pass."""
    out.print(_verdict_table(verdicts))
    for verdict, lines in behind(verdicts):
        if verdict.result in ("fail", "unknown"):
            out.print(_text(str(verdict), RESULTS[verdict.result].style))
            _print_lines(lines, out)


def _verdict_table(verdicts: Sequence[Verdict]) -> Table:
    table = tables.table("", "at", "claim", "seen")
    for verdict in verdicts:
        table.add_row(
            Text(RESULTS[verdict.result].sign, RESULTS[verdict.result].style),
            f"{verdict.at:.3f} s",
            _text(claim_words(verdict)),
            _text(verdict.actual),
        )
    return table


def _print_lines(lines: Iterable[str], out: Console) -> None:
    for line in lines:
        out.print(Padding(_text(line), (0, 0, 0, 4)))


def print_ladders(runs: Sequence[RunResult]) -> None:
    """The ladders of runs on stdout: in colour on a terminal."""
    out = tables.console()
    if not out.is_terminal:
        print(ladders(runs), end="")
        return
    out.print(styled_ladders(runs, out.width), soft_wrap=True, end="")


def print_comparison(found: Comparison, out: Console) -> None:
    """Places side by side: what differs or did not pass, and then everything but the claims."""
    places = [
        [f"{RESULTS[p.result].sign} {p.result}", p.name, p.kernel, p.system, p.reason or ""]
        for p in found.places
    ]
    tables.print_table(out, ["", "place", "kernel", "system", ""], places)
    if found.nothing:
        out.print(Text(f"\n{found.nothing}"))
    for first, heading in ((True, "What differs or did not pass"), (False, "Everything")):
        for section in found.sections(first):
            if first or section.kind != "claim":
                tables.print_table(out, section.heads, section.rows, f"{heading}: {section.title}")


# --- Progress -------------------------------------------------------------------------------------


class Drawn(ABC):
    """Redrawn in place during a `with`."""

    def __init__(self, out: Console, **options: Any) -> None:
        self._live = Live(get_renderable=self._draw, console=out, transient=True, **options)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @abstractmethod
    def _draw(self) -> RenderableType: ...


class LiveProgress(Drawn):
    """The step, and both sides' sockets with their timers counting down."""

    def __init__(self, scenario: Scenario, out: Console) -> None:
        self._scenario = scenario
        self._history: History | None = None
        self._heard = 0.0
        self._ended: list[str] = []
        self._lab: Lab | None = None
        super().__init__(out, refresh_per_second=8)

    def event(self, event: Event, history: History) -> None:
        """See `Watcher`."""
        self._history = history
        self._heard = time.monotonic()
        if isinstance(event, StepEvent):
            self._ended = []
        elif ended := ended_meanwhile(self._scenario, history):
            self._ended.append(ended)

    def up(self, lab: Lab) -> None:
        """See `Watcher`."""
        self._lab = lab

    def done(self, lab: Lab) -> None:
        """See `Watcher`."""

    def _draw(self) -> RenderableType:
        title = one_line(f"{self._scenario.label}  {self._scenario.title}", "bold")
        if self._history is None or self._history.lab is None:
            return Group(title, Text("  bringing the lab up", "dim"))
        since = time.monotonic() - self._heard  # a guest's lab sends only events
        now = self._lab.now() if self._lab else self._history.now + since
        sides = []
        for host in self._scenario.hosts:
            look = self._history.sockets.get(host)
            words = partial(describe_socket, age=now - look.t) if look else str
            lines = _lines(look.sockets, words) if look else ["not seen yet"]
            sides += [(host, line) for line in lines]
        ended = [one_line(f"    {line}", RESULTS["fail"].style) for line in self._ended]
        return Group(
            title, *self._steps(now), *ended, Text(""), Padding(by_host(sides), (0, 0, 0, 2))
        )

    def _steps(self, now: float) -> list[Text]:
        """The last few steps, and how long the current one has taken."""
        assert self._history is not None
        events = [*self._history.events.of(StepEvent)]
        lines = [
            one_line(f"  {OUTCOMES.get(e.outcome, '✗')} {e.t:8.3f} s  {e.text}", "dim")
            for e in events
            if e.phase == "end"
        ]
        if events and events[-1].phase == "begin":
            step = events[-1]
            lines.append(one_line(f"  ▸ {now:8.3f} s  {step.text}  ({now - step.t:.1f} s)", "bold"))
        return lines[-STEPS_SHOWN:]


class LastLines(Drawn):
    """The last line that each of several commands has said."""

    def __init__(self, names: Sequence[str], out: Console) -> None:
        self._lines = dict.fromkeys(names, "waits for its turn")
        super().__init__(out)

    def say(self, name: str, line: str) -> None:
        """Takes a command's line."""
        self._lines[name] = line

    def _draw(self) -> RenderableType:
        shown = [f"{name}: {line.removeprefix(f'{name}: ')}" for name, line in self._lines.items()]
        return Group(*(one_line(text, "dim") for text in shown))


class LiveBoard(Drawn):
    """A line for each running case, and how many are done. See `Board`.

    It has no thread, and leaves stdout and stderr alone: workers are forked while it is shown."""

    def __init__(self, cases: Sequence[Scenario], out: Console) -> None:
        self._cases = cases
        self._names = told_apart((case.label, case.source) for case in cases)
        self._began = time.monotonic()
        self._running: dict[int, tuple[float, Doing | None]] = {}
        self._done: list[RunResult] = []
        self._out = out
        super().__init__(out, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def begun(self, number: int) -> None:
        self._running[number] = (time.monotonic(), None)

    def doing(self, number: int, step: Doing) -> None:
        self._running[number] = (self._running[number][0], step)

    def say(self, line: str) -> None:
        self._out.print(_text(line))

    def ended(self, number: int, result: RunResult) -> None:
        del self._running[number]
        self._done.append(result)

    def tick(self) -> None:
        self._live.refresh()

    def _draw(self) -> RenderableType:
        now = time.monotonic()
        width = min(max(map(len, self._names)), self._out.width * 2 // 5)
        lines = []
        for number, (since, step) in self._running.items():
            label, steps = plain(self._names[number]), len(self._cases[number].steps)
            at, text = (step.index + 1, step.text) if step else (0, "bringing the lab up")
            line = f"{label[:width]:{width}} {at:3}/{steps:<3} {now - since:5.1f} s  {text}"
            lines.append(one_line(line, ""))
        done = f"{len(self._done)}/{len(self._cases)} done"
        counts = _counts([run for run in self._done if run.result != "pass"])
        words = [Text(done), *counts, Text(f"{now - self._began:.1f} s")]
        # First, since a terminal without enough room leaves out the end.
        return Group(Text(", ", "bold").join(words), *lines)


def one_line(words: str, style: str) -> Text:
    """One line, however long the words are."""
    return Text(plain(words), style, no_wrap=True, overflow="ellipsis")
