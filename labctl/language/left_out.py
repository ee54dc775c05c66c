"""Steps that are for other variants: what they lack in this one is no mistake."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from labctl.language.document import Document, Expanded
from labctl.language.params import Choice
from labctl.language.steps.base import When


class Others:
    """The steps of a file that some of its variants leave out, and another one does. A step that
    all leave out is checked like any other, unless `--set` may be the reason."""

    def __init__(
        self, document: Document, choices: Sequence[Choice], sets: Collection[str]
    ) -> None:
        self._wanted: dict[int, When] = {}
        steps = document.expand(None).data.get("steps") if len(choices) > 1 or sets else None
        for index, step in enumerate(steps if isinstance(steps, list) else ()):
            when = step.get("when") if isinstance(step, dict) else None
            variant = when.get("variant") if isinstance(when, dict) else None
            if isinstance(variant, dict):
                wanted = When.model_construct(variant=variant)
                if sets or not all(wanted.excludes(choice.variant) for choice in choices):
                    self._wanted[index] = wanted

    def of(self, variant: Mapping[str, Any]) -> frozenset[int]:
        """The indices of those that this variant leaves out."""
        return frozenset(i for i, when in self._wanted.items() if when.excludes(variant))


def elsewhere(expanded: Expanded, left_out: Iterable[int], line: int) -> bool:
    """Whether a line is one of these steps."""
    for index in left_out:
        begin = expanded.line(("steps", index))
        end = expanded.lines.get(("steps", index + 1), begin + 1)
        if begin <= line < max(end, begin + 1):
            return True
    return False


def blanked(data: Mapping[str, Any], indices: Collection[int]) -> dict[str, Any]:
    """The data of a file, with notes instead of these steps."""
    steps = [
        {"note": "for another variant", **{k: step[k] for k in ("as", "when") if k in step}}
        if index in indices else step
        for index, step in enumerate(data["steps"])
    ]  # fmt: skip
    return {**data, "steps": steps}
