"""The exception tree: all that users may see is in it, as its drawing has it."""

from __future__ import annotations

import pickle
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module

import pytest

import labctl
from labctl.ground import errors
from labctl.ground.errors import LabctlError, LabError, Mistake, Refused, ScenarioError, located

ASIDE = {
    "labctl.backends.wire.NoMessage",
    "labctl.ground.patterns.TooSlow",
    "labctl.language.calls.CallError",
    "labctl.language.steps.base.StepFailed",
    "labctl.probes.sockets.SsParseError",
    "labctl.run.runner.Interrupted",
}
"""What others of ours catch, and users never see."""


def below(kind: type[BaseException], depth: int = 0) -> Iterator[tuple[int, type[BaseException]]]:
    yield depth, kind
    for each in sorted(kind.__subclasses__(), key=lambda k: k.__name__):
        if each.__module__.startswith("labctl."):
            yield from below(each, depth + 1)


@pytest.fixture(scope="module", autouse=True)
def everything() -> None:
    """All of labctl is imported, but for what ends the program that imports it."""
    for module in pkgutil.walk_packages(labctl.__path__, "labctl."):
        if module.name not in ("labctl.__main__", "labctl.run.guests.guest"):
            import_module(module.name)


def test_the_tree_is_as_drawn() -> None:
    drawn = re.findall(r"^([|` -]*)(\w+) {2,}", errors.__doc__ or "", re.MULTILINE)
    ranks = {kind.__name__: depth for depth, kind in below(LabctlError)}
    assert {name: len(edge) // 4 for edge, name in drawn} == ranks


def test_what_users_see_is_in_the_tree() -> None:
    assert {
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in all_of(BaseException)
        if kind.__module__.startswith("labctl.") and not issubclass(kind, LabctlError)
    } == ASIDE


def all_of(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for each in kind.__subclasses__():
        yield each
        yield from all_of(each)


def test_a_hint_stands_beside_the_message() -> None:
    exc = LabError("it is gone", "start it")
    assert (exc.message, exc.hint, str(exc)) == ("it is gone", "start it", "it is gone; start it")
    assert (LabError("it is gone").hint, str(LabError("it is gone"))) == ("", "it is gone")
    again = pickle.loads(pickle.dumps(exc))
    assert (type(again), again.message, again.hint) == (LabError, "it is gone", "start it")


def test_a_line_of_a_scenario_keeps_the_hint() -> None:
    with pytest.raises(Refused) as caught, located("mine.yaml:7"):
        raise Refused("no such value", "take another")
    assert caught.value.message == "mine.yaml:7: no such value"
    assert caught.value.hint == "take another"


def test_mistakes_are_a_message() -> None:
    assert str(ScenarioError([Mistake("a.yaml", 2, "b"), Mistake("a.yaml", 1, "a")])) == (
        "a.yaml:1: a\na.yaml:2: b"
    )
