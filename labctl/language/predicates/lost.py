"""What a `drop` claims: that it lost segments, or as many as it should."""

from __future__ import annotations

from dataclasses import dataclass

from labctl.language.facts import Facts, Range
from labctl.language.predicates.finding import Claimed, Finding, decided
from labctl.probes.observations import connections
from labctl.record.history import History


@dataclass(frozen=True)
class Lost:
    """The claim that a step's drop lost some segments, or `count`. The kernel's counter decides."""

    step: int
    text: str
    count: int | None
    about: tuple[str, ...] = ()

    def judge(self, history: History) -> list[Finding]:
        """The finding, from the whole history."""
        wanted = self.count or 1
        expected = f"{'' if self.count else 'at least '}{_segments(wanted)} lost"
        wants = Facts(count=Range(wanted, self.count))
        claimed = Claimed(self.text, expected, self.about, wants, text=self.text)
        reported = sum(loss.drop == self.step for loss in history.losses)
        found = [s for s in history.segments() if s.dropped == self.step]
        lines = tuple(f"{s.time:.6f} {s.sender} -> {s.receiver}: {s.summary}" for s in found[:12])
        counts = [n for (_, step), n in history.tallies.items() if step == self.step]
        lost = max(sum(counts), reported)
        if lost < wanted and not counts:
            return [Finding("unknown", claimed, "the run ended first", lines)]
        actual = f"{_segments(lost)} lost"
        measured = Facts(count=Range(lost, lost), connections=connections(found[:12]))
        return [decided(lost >= wanted, claimed, actual, measured, *lines)]


def _segments(count: int) -> str:
    return f"{count} segment{'' if count == 1 else 's'}"
