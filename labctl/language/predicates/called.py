"""`call: {CALL: OUTCOME}`: which calls of a process a claim is about, and how they went."""

from __future__ import annotations

import re
from collections.abc import Sequence

from labctl.ground import errnos
from labctl.ground.data import dataclass
from labctl.language.calls import CallError, parse_calls, peer
from labctl.language.values import COMPARISON, Comparison, problem, unknown
from labctl.record.events import CallEvent
from labctl.record.history import ProcessState

NTH = re.compile(r"([1-9]\d{0,8})(?:st|nd|rd|th)\s+(.*)", re.ASCII)
BLOCKED = "blocked"
STILL = 0.1
"""Seconds that a call must have taken by now to count as blocked: a busy machine may need some of
them for one that blocks nowhere."""
OUTCOMES = ("ok", BLOCKED, *errnos.NAMES)
VALUED = ("get", "poll", "send", "recv")
"""Calls that have a value: what they found, or how many bytes."""


@dataclass(frozen=True)
class Asked:
    """Which calls: those of a name that begin with these words; of them the `nth`, or the last."""

    words: tuple[str, ...]
    nth: int | None

    @classmethod
    def parse(cls, key: str) -> Asked:
        """From `accept`, `2nd accept` or `get SO_ERROR`."""
        match = NTH.fullmatch(key)
        text, nth = (match[2], int(match[1])) if match else (key, None)
        return cls(tuple(text.split()), nth)

    @property
    def name(self) -> str:
        """The name of the call."""
        return self.words[0] if self.words else ""

    def finished(self, state: ProcessState, since: float) -> Sequence[CallEvent]:
        """Those that are done, in order; if only the last one counts, that alone."""
        if len(self.words) == 1 and self.nth is None:
            last = state.last.get(self.name)
            return [last] if last and last.t >= since else []
        done = state.calls.of(name=self.name) if len(self.words) == 1 else state.calls
        return [call for call in done if call.t >= since and self._fits(call)]

    def under_way(self, state: ProcessState) -> Sequence[CallEvent]:
        """Those that have begun and are not done."""
        return [call for call in state.under_way.values() if self._fits(call)]

    def _fits(self, call: CallEvent) -> bool:
        if len(self.words) == 1:
            return call.name == self.name
        return tuple(call.call.partition("||")[0].split()[: len(self.words)]) == self.words


@dataclass(frozen=True)
class Called:
    """What is claimed of a call: see `judge`."""

    asked: Asked
    wanted: str

    def judge(self, state: ProcessState, since: float, now: float) -> tuple[bool | None, str]:
        """Whether it holds, or None if that is open; and what was seen."""
        done = self.asked.finished(state, since)
        if self.wanted == BLOCKED:
            return self._blocked(done, state, now)
        call = self._chosen(done)
        return call is not None and self._met(call), self.outcome(call)

    def outcome(self, call: CallEvent | None) -> str:
        """What came of a call: an errno, its value, or `ok`."""
        if call is None:
            return "not done"
        counts = COMPARISON.fullmatch(self.wanted) and call.result is not None
        return call.errno or call.value or (str(call.result) if counts else "ok")

    def seen(self, state: ProcessState, since: float) -> str:
        """The same, of the call that decides."""
        if self.wanted == BLOCKED and self.asked.under_way(state):
            return BLOCKED
        return self.outcome(self._chosen(self.asked.finished(state, since)))

    def _chosen(self, done: Sequence[CallEvent]) -> CallEvent | None:
        if self.asked.nth is None:
            return done[-1] if done else None
        return done[self.asked.nth - 1] if len(done) >= self.asked.nth else None

    def _blocked(
        self, done: Sequence[CallEvent], state: ProcessState, now: float
    ) -> tuple[bool | None, str]:
        inside = self.asked.under_way(state) if state.running else []
        if not inside or self.asked.nth not in (None, len(done) + 1):
            return False, self.outcome(self._chosen(done))
        if now - min(call.t for call in inside) < STILL:
            return None, f"it has only just begun; {STILL:g} s must go by"
        return True, BLOCKED

    def _met(self, call: CallEvent) -> bool:
        if self.wanted == "ok":
            return call.errno is None
        outcome = self.outcome(call)
        match = COMPARISON.fullmatch(self.wanted)
        if match and outcome.isdecimal():
            return Comparison(match[1] or "==", int(match[2])).holds(int(outcome))
        return outcome.split() == self.wanted.split()


def check(key: str, wanted: str) -> None:
    """Raises what `problem` makes if there is no such call, or it can't have that outcome."""
    asked, calls = Asked.parse(key), peer().CALLS
    if asked.name not in calls:
        raise problem(unknown("call", asked.name, calls))
    if asked.name == "get" and len(asked.words) > 1:
        try:
            parse_calls(" ".join(asked.words))
        except CallError as exc:
            raise problem(str(exc)) from exc
    if asked.name not in VALUED and wanted not in OUTCOMES:
        raise problem(unknown("outcome", wanted, OUTCOMES))
