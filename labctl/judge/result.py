"""The result of a run: one form for those who ran it, and for those who read its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.ground.data import dataclass
from labctl.ground.errors import LabctlError
from labctl.judge.accounts import Account
from labctl.judge.check import Verdict, of_another, overall
from labctl.language.scenario import Scenario
from labctl.record.history import History

if TYPE_CHECKING:  # what explains is imported while the lab waits (progress.py)
    from labctl.judge.causes.cause import Cause

VERSION = 1
"""The version of the result document, which may get more keys without a new version."""
READS = range(1, VERSION + 1)


@dataclass(frozen=True, eq=False)
class RunResult:
    """The result of one case. `seconds` is wall time, `lab_seconds` time by the lab's clock;
    `started` is RFC 3339. `processes` is what the processes did last, if the lab failed. `hint`
    says what to do about `reason`, if that is known.

    `theme`, `about`, `refs` and `others` (the steps of other variants, by number) are empty if the
    scenario can no longer be read. `beside`: why, as far as no cause says it. `counted`: how
    much the counters grew that `why` mentions, by host; None if that is not known. `files`: the
    final sizes of the record's files in bytes, as far as they are known."""

    folder: Path
    scenario: str
    title: str
    source: str
    text: str
    case: str
    result: str
    reason: str | None
    backend: str
    environment: Mapping[str, Any]
    started: str
    seconds: float
    lab_seconds: float
    theme: str = ""
    about: str = ""
    refs: tuple[str, ...] = ()
    variant: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    others: frozenset[int] = frozenset()
    verdicts: tuple[Verdict, ...] = ()
    processes: tuple[Account, ...] = ()
    causes: tuple[Cause, ...] = ()
    beside: tuple[str, ...] = ()
    counted: Mapping[str, Mapping[str, int]] | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    name: str = ""
    hint: str | None = None
    history: History = field(default_factory=History, repr=False)

    @classmethod
    def of(cls, case: Scenario, **found: Any) -> RunResult:
        """The result of this case: `found` has everything that the scenario does not say."""
        return cls(
            scenario=case.name,
            title=case.title,
            source=case.source,
            text=case.text,
            case=case.case,
            theme=case.theme,
            about=case.about,
            refs=case.refs,
            variant=case.variant,
            sets=case.sets,
            hosts=tuple(case.hosts),
            others=others(case),
            **found,
        )

    @property
    def label(self) -> str:
        """`so_reuseaddr (old plain, new both)`, or a `name` that distinguishes it from others."""
        return self.name or (f"{self.scenario} ({self.case})" if self.case else self.scenario)

    @property
    def why(self) -> tuple[str, ...]:
        """Its causes as sentences, and what is beside them."""
        from labctl.judge.explain import sentences

        return tuple(sentences(self.causes, self.beside))

    @property
    def where(self) -> str:
        """Where it ran: the backend, the kernel, the operating system, the engine."""
        known = self.environment
        kernel = f"kernel {known['kernel']}" if known.get("kernel") else None
        words = (self.backend, kernel, known.get("os"), known.get("engine"))
        return ", ".join(str(word) for word in words if word)

    def as_json(self) -> dict[str, Any]:
        """As the result document has it."""
        return {
            "scenario": self.scenario,
            "source": self.source,
            "title": self.title,
            "variant": dict(self.variant),
            "case": self.case,
            **({"sets": dict(self.sets)} if self.sets else {}),
            "result": self.result,
            **({"reason": self.reason} if self.reason else {}),
            **({"hint": self.hint} if self.hint else {}),
            "backend": self.backend,
            "environment": dict(self.environment),
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "lab_seconds": round(self.lab_seconds, 3),
            "dir": str(self.folder),
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
            "causes": [cause.as_json() for cause in self.causes],
            "why": list(self.why),
            "counted": self.counted,
            **({"processes": [a.as_json() for a in self.processes]} if self.processes else {}),
        }


def others(case: Scenario) -> frozenset[int]:
    """The steps that are for other variants only, by number."""
    return frozenset(n for n in range(len(case.steps)) if of_another(case, n))


def document(runs: Sequence[RunResult], reason: str = "") -> dict[str, Any]:
    """The result document. With a `reason` why some runs are missing it is an `error`."""
    return {
        "version": str(VERSION),
        "result": "error" if reason else overall(run.result for run in runs),
        **({"reason": reason} if reason else {}),
        "runs": [run.as_json() for run in runs],
    }


def unperformed(
    case: Scenario,
    result: str,
    why: str | LabctlError,
    backend: str,
    folder: Path,
) -> RunResult:
    """The result of a case that was not performed, or not to its end."""
    return RunResult.of(
        case,
        folder=folder,
        result=result,
        reason=str(why),
        hint=why.hint if isinstance(why, LabctlError) else None,
        backend=backend,
        environment={"kernel": None, "os": None, "engine": None},
        started=now(),
        seconds=0.0,
        lab_seconds=0.0,
    )


def now() -> str:
    """The wall clock, in the form of results (RFC 3339)."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
