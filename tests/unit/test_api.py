"""What labctl exports: all of it is there, typed and documented, and imported when it is used."""

from __future__ import annotations

import inspect
import keyword
import subprocess
import sys
from typing import TYPE_CHECKING, assert_type, get_origin, get_type_hints

import pytest

import labctl
from labctl.language.steps import STEPS
from labctl.language.values import Model
from labctl.record.events import KINDS
from labctl.testing.verbs import parameters
from tests.unit.test_docs import keys, words

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer


def test_all_is_documented() -> None:
    assert sorted(words("docs/testing.md", "What labctl exports", "name")) == labctl.__all__


def test_all_is_there() -> None:
    for name in labctl.__all__:
        found = getattr(labctl, name)
        assert isinstance(found, str) or (found.__name__ == name and found.__doc__)
    with pytest.raises(AttributeError, match="no attribute 'Lap'"):
        _ = labctl.Lap  # type: ignore[attr-defined]


def test_every_kind_of_event_is_there() -> None:
    assert {kind.__name__ for kind in KINDS.values()} <= {*labctl.__all__}


def test_the_package_stays_light() -> None:
    code = "import sys, labctl; print([n for n in sys.modules if n.startswith('labctl.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("verb", STEPS)
def test_a_verb_is_a_method(verb: str) -> None:
    """Its modifiers are keywords, and so is what stands below it; what it names is not."""
    step, method = STEPS[verb], getattr(labctl.Lab, verb)
    below = step.model_fields[verb].annotation
    found = inspect.signature(method).parameters.values()
    named = {p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
    keywords = {*parameters(method)} - named
    pattern = keys(below) if isinstance(below, type) and issubclass(below, Model) else set()
    wanted = pattern | keys(step) - {verb}
    assert keywords == {f"{key}_" if keyword.iskeyword(key) else key for key in wanted}, (
        f"labctl/testing/verbs.py: the keywords of {verb!r}, or of the TypedDict that it takes"
    )
    assert len(named) == (2 if get_origin(below) is dict else 1)
    assert method.__doc__
    assert get_type_hints(method).keys() == {p.name for p in found} - {"self"} | {"return"}


def test_the_keys_of_segments() -> None:
    """Those of the language, but for how many there are and how far apart."""
    claim = STEPS["expect"].model_fields["expect"].annotation
    assert claim
    pattern = keys(get_type_hints(claim)["segments"].__args__[0])
    found = parameters(labctl.Lab.segments)
    counting = {"count", "at_least", "at_most", "spaced", "tolerance"}
    assert {name.removesuffix("_") for name in found} == pattern - counting


def typed(lab: labctl.Lab, container: DockerContainer) -> None:
    """What `mypy --strict` shows to users; nobody calls it. An ignored error must be one."""
    lab.wait(sockets={"server": ["LISTEN", {"state": "ESTAB", "count": 0}]}, within=1.5)
    lab.kill("server", az="killed")  # type: ignore[call-arg]
    lab.kill(7)  # type: ignore[arg-type]
    lab.drop(from_="server", at=7)  # type: ignore[arg-type]
    lab.kil("server")  # type: ignore[attr-defined]
    lab.events(int)  # type: ignore[type-var]
    with labctl.watch("db", api=container, ports=[80]) as seen:
        seen.expect(sockets={"api": "ESTAB"})
        seen.kill("api")  # type: ignore[attr-defined]
    labctl.watch(7)  # type: ignore[arg-type]
    container.waiting_for(labctl.socket_state("LISTEN", port=80))
    assert_type(lab.place(container, "server"), DockerContainer)
    assert_type(lab.exec("server", "true"), labctl.ExecEvent)
    assert_type(lab.sockets("server"), tuple[labctl.Socket, ...])
    assert_type(lab.segments(flags="FIN"), tuple[labctl.Segment, ...])
    assert_type(lab.events(labctl.CallEvent), tuple[labctl.CallEvent, ...])
    try:
        lab.expect(process={"server": "running"})
    except labctl.NotPassed as exc:
        assert_type(exc.verdicts, tuple[labctl.Verdict, ...])
