"""The cases of a file, from its params, its variants and `--set`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from labctl.ground.data import dataclass
from labctl.ground.errors import Mistake, ScenarioError, UsageError
from labctl.ground.written import same, words
from labctl.language.document import REFERENCE, Document, Params, Path_, read_scalar
from labctl.language.values import unknown

MAX_VARIANTS = 1000


@dataclass(frozen=True)
class Choice:
    """The params of one case, and its variant with its values."""

    params: Params
    variant: Mapping[str, Any]


class Given:
    """The params and variants of a file, which begin at this `line`. Raises ScenarioError if they
    can't be read; the lesser `mistakes` may become more later."""

    def __init__(self, document: Document) -> None:
        head = document.head()
        self._document = document
        self.mistakes = self._placed(head.mistakes)
        params, variants = (
            empty if (given := head.data.get(key)) is None else given
            for key, empty in (("params", {}), ("variants", []))
        )
        if not isinstance(params, dict):
            message = "params is a mapping of names and defaults"
            self.mistakes += self._placed([(head.line(("params",)), message)])
        if not isinstance(variants, list) or not all(isinstance(v, dict) and v for v in variants):
            message = "variants is a list of mappings, each with values for one param or more"
            self.mistakes += self._placed([(head.line(("variants",)), message)])
        elif len(variants) > MAX_VARIANTS:
            message = f"{len(variants)} variants; {MAX_VARIANTS} is the most: make it several files"
            self.mistakes += self._placed([(head.line(("variants",)), message)])
        self.line = head.line(("variants",))
        if self.mistakes:
            raise ScenarioError(self.mistakes)
        places: list[Path_] = [("params", name) for name in params]
        places += [("variants", index, name) for index, v in enumerate(variants) for name in v]
        for path in places:
            if not REFERENCE.fullmatch(f"${{{path[-1]}}}"):
                message = f"{path[-1]!r} is no param's name; allowed: letters, digits, underscores"
                self.mistakes += self._placed([(head.line(path), message)])
        self._params = {name: head.nodes["params", name] for name in params}
        self._variants = [
            {name: head.nodes["variants", index, name] for name in variant}
            for index, variant in enumerate(variants)
        ]

    @property
    def varied(self) -> list[str]:
        """The names of the params that variants have."""
        return list(dict.fromkeys(name for variant in self._variants for name in variant))

    @property
    def names(self) -> set[str]:
        """The names of all params."""
        return {*self._params, *self.varied}

    def choices(self, sets: Mapping[str, str]) -> list[Choice]:
        """A choice for each variant, or the only one; if some are the same, just one of them.
        `sets` override params, as text that is read like YAML. Raises UsageError for a name that is
        no param."""
        for name in sets:
            if name not in self.names:
                message = unknown("param", name, sorted(self.names))
                raise UsageError(f"{self._document.file}: --set {name}: {message}")
        given = {name: read_scalar(text) for name, text in sets.items()}
        found: dict[frozenset[tuple[str, str]], Choice] = {}
        for variant in self._variants or [{}]:
            params = {**self._params, **variant, **given}
            values = self._document.values(params, params)
            self.mistakes += self._placed(values.mistakes)
            chosen = {name: values.data[name] for name in variant}
            identity = frozenset((name, words(value)) for name, value in chosen.items())
            found.setdefault(identity, Choice(params, chosen))
        return list(found.values())

    def _placed(self, mistakes: list[tuple[int, str]]) -> list[Mistake]:
        return [Mistake(self._document.file, line, message) for line, message in mistakes]


def alike(choices: Iterable[Choice]) -> set[str]:
    """The params whose values in two choices differ only in how they are written."""
    values: dict[str, dict[str, Any]] = {}
    for choice in choices:
        for name, value in choice.variant.items():
            values.setdefault(name, {})[words(value)] = value
    return {
        name for name, found in values.items()
        if any(same(one, other) for one, other in combinations(found.values(), 2))
    }  # fmt: skip
