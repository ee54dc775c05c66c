"""What a `drop` or `reject` claims: that it lost segments, or as many as it should."""

from __future__ import annotations

from labctl.ground.data import dataclass
from labctl.language.facts import Facts, Range
from labctl.language.predicates.finding import Claimed, Finding, decided
from labctl.probes.observations import connections
from labctl.record.history import History


@dataclass(frozen=True)
class Lost:
    """The claim that a step lost segments, `least` or more and `most` at most. The kernel's counter
    decides. `done` says what it did to them."""

    step: int
    text: str
    least: int = 1
    most: int | None = None
    about: tuple[str, ...] = ()
    done: str = "lost"

    def judge(self, history: History) -> list[Finding]:
        """The finding, from the whole history."""
        wants = Facts(count=Range(self.least, self.most))
        claimed = Claimed(self.text, self._expected, self.about, wants, text=self.text)
        reported = sum(loss.drop == self.step for loss in history.losses)
        found = [s for s in history.segments(whole=True) if s.dropped == self.step]
        lines = tuple(f"{s.time:.6f} {s.sender} -> {s.receiver}: {s.summary}" for s in found[:12])
        counts = [n for (_, step), n in history.tallies.items() if step == self.step]
        lost = max(sum(counts), reported)
        if lost < self.least and not counts:
            return [Finding("unknown", claimed, "the run ended first", lines)]
        actual = f"{_segments(lost)} {self.done}"
        measured = Facts(count=Range(lost, lost), connections=connections(found[:12]))
        return [decided(lost >= self.least, claimed, actual, measured, *lines)]

    @property
    def _expected(self) -> str:
        if self.least == self.most:
            return f"{_segments(self.least)} {self.done}"
        if self.most is None:
            return f"at least {_segments(self.least)} {self.done}"
        return f"at most {_segments(self.most)} {self.done}"


def _segments(count: int) -> str:
    return f"{count} segment{'' if count == 1 else 's'}"
