"""What all steps have: their modifiers, where they run, and how they fail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, ConfigDict, Field

from labctl.ground.plain import shown
from labctl.ground.written import same, words
from labctl.language.predicates import Finding, Predicate
from labctl.language.values import OPERATORS, Label, Model, ParamName, Text, brief, problem, shaped
from labctl.record.history import History

if TYPE_CHECKING:
    from labctl.lab.lab import Lab

Outcome = Literal["done", "held", "timeout"]


class Claims(Protocol):
    """Something that can be judged."""

    def judge(self, history: History) -> list[Finding]:
        """The findings, at the end of `history`."""


class StepFailed(Exception):
    """A step that could not be done because the scenario assumed something false."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(f"{what}: expected {expected}, saw {actual}")
        self.expected, self.actual = expected, actual


ONE = r"(?:>=|<=|==|!=|>|<)?\s*\d+(?:\.\d+)*"
KERNEL = re.compile(rf"{ONE}(?:(?:\s*,\s*|\s+){ONE})*", re.ASCII)
COMPARED = re.compile(r"(>=|<=|==|!=|>|<)?\s*(\d+(?:\.\d+)*)")


def _kernel(value: Any) -> str:
    text = str(getattr(value, "written", value)).strip()
    if isinstance(value, bool) or not KERNEL.fullmatch(text):
        raise problem(
            f'{shown(value)} is no kernel version; allowed: ">=6.14", "<6.1", ">=6.1 <6.12"'
        )
    return text


def version(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a kernel release."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match.group().split("."))) if match else ()


KernelVersion = Annotated[str, BeforeValidator(_kernel), shaped("Kernel")]
BackendName = Annotated[Text, shaped("Backend")]


class When(Model):
    """Where a step runs; everywhere else it is left out."""

    kernel: KernelVersion | None = None
    backend: BackendName | None = None
    variant: dict[ParamName, Any] | None = None

    def lacking(self, kernel: str, backend: str, variant: dict[str, Any]) -> str | None:
        """Why a step does not run here, or None if it does."""
        if self.kernel and not _kernel_fits(self.kernel, kernel):
            return f"kernel {kernel} is not {self.kernel}"
        if self.backend and self.backend != backend:
            return f"backend {backend} is not {self.backend}"
        for name, value in self.excludes(variant).items():
            had = words(variant[name]) if name in variant else "none"
            return f"variant has {name} {had}, not {words(value)}"
        return None

    def excludes(self, variant: Mapping[str, Any]) -> dict[str, Any]:
        """The wanted values that this variant does not have, in value and type."""
        return {
            name: value
            for name, value in (self.variant or {}).items()
            if name not in variant or not same(variant[name], value)
        }


def _kernel_fits(wanted: str, kernel: str) -> bool:
    """Whether a kernel is in all of these bounds; as many of its numbers count as they have."""
    for how, than in COMPARED.findall(wanted):
        theirs = version(than)
        compare: Any = OPERATORS[how or "=="]
        if not compare(version(kernel)[: len(theirs)], theirs):
            return False
    return True


class Step(Model):
    """One verb, and the modifiers that every verb takes."""

    model_config = ConfigDict(defer_build=True)

    verb: ClassVar[str]
    as_: Label | None = Field(None, alias="as")
    when: When | None = None

    def load(self) -> None:
        """Imports what it needs to act, so that this does not delay the step."""

    def act(self, lab: Lab) -> Outcome | None:
        """Does it. Raises StepFailed, LabError."""
        raise NotImplementedError

    def of_another(self, variant: Mapping[str, Any]) -> bool:
        """Whether it is a step for other variants than this one."""
        return self.when is not None and bool(self.when.excludes(variant))

    @property
    def claim(self) -> Predicate | None:
        """What it claims, if it is a wait or an expectation."""
        return None

    def judge(self, history: History) -> list[Finding]:
        """The findings on its claims, at its end, which is the end of `history`."""
        return self.claim.judge(history) if self.claim else []

    @property
    def about(self) -> tuple[str, ...]:
        """The hosts and processes that it is mainly about."""
        value = getattr(self, self.verb)
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, dict) else ()

    @property
    def labels(self) -> frozenset[str]:
        """The labels of earlier steps that it needs. If such a step is left out, it is, too."""
        return self.claim.labels if self.claim else frozenset()

    def in_the_end(self, index: int) -> Claims | None:
        """What it claims about the whole run, as step number `index`."""
        return None

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities that it needs."""
        return frozenset()

    @property
    def starts(self) -> list[str]:
        """The processes that it starts."""
        return []

    @property
    def least(self) -> float:
        """About how many seconds it takes at least, if all goes well."""
        return 0.0

    def __str__(self) -> str:
        value = getattr(self, self.verb)
        if isinstance(value, dict):
            value = "; ".join(f"{name}: {_short(item)}" for name, item in value.items())
        return f"{self.verb} {brief(str(value))}"


def _short(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key} = {value}" for key, value in item.items())
    return brief(str(item))
