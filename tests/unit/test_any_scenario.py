"""Whatever stands in a file: it is a scenario, or a list of mistakes with their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from labctl.ground.errors import ScenarioError
from labctl.language.scenario import load
from labctl.language.steps import STEPS
from tests.unit.test_scenario import LESSON, cases

# Any text at all

WORDS = [
    "title", "about", "refs", "params", "variants", "hosts", "steps", "expect", "needs", "server",
    "client", "sysctls", "addresses", "image", "calls", "run", "processes", "uid", "env", "as",
    "within", "since", "when", "kernel", "backend", "variant", "sockets", "process", "counters",
    "state", "count", "recv-q", "timer", "local", "peer", "exit", "signal", "output", "call",
    "none", "LISTEN", "ESTAB", "EADDRINUSE", "ok", "4.5s..7s", ">=3", "${n}", "x${n}", "${nope}",
    "net.ipv4.tcp_fin_timeout", "socket\nbind :8000\n", 'send "x" forever', "drop", "segments",
    "label", "<<", "=", "TERM", "images", "docker", "6.1", "(", *STEPS,
]  # fmt: skip
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.dates(),
)
KEYS = st.one_of(st.sampled_from(WORDS), SCALARS)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
HOST = st.dictionaries(
    st.sampled_from(["calls", "run", "sysctls", "addresses", "processes", "uid", "env", "image"]),
    DATA,
    max_size=3,
)
STEP = st.one_of(
    DATA, st.dictionaries(st.sampled_from([*STEPS, "as", "when", "since", "within"]), DATA)
)
SCENARIOS = st.fixed_dictionaries(
    {"title": SCALARS, "hosts": st.dictionaries(st.sampled_from(["server", "client", "no"]), HOST)},
    optional={
        "params": st.one_of(DATA, st.dictionaries(st.sampled_from(["n", "m"]), SCALARS)),
        "variants": st.one_of(
            DATA, st.lists(st.dictionaries(st.sampled_from(["n", "m"]), SCALARS))
        ),
        "steps": st.one_of(DATA, st.lists(STEP, max_size=4)),
        "expect": st.lists(DATA, max_size=3),
        "needs": DATA,
        "abuot": DATA,
    },
)
BREAKS = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")  # what YAML 1.1 takes for the end of a line
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
QUICK = settings(max_examples=150, suppress_health_check=list(HealthCheck))


def sees_to(text: str) -> None:
    """Loading a text gives cases, or mistakes in its lines."""
    lines = len(BREAKS.findall(text)) + 1
    try:
        assert cases(text)
    except ScenarioError as exc:
        assert exc.mistakes
        for mistake in exc.mistakes:
            assert 1 <= mistake.line <= lines
            assert mistake.message
            assert str(mistake).startswith(f"lesson.yaml:{mistake.line}: ")


@QUICK
@given(data=SCENARIOS, flow=st.sampled_from([None, True, False]), width=st.sampled_from([20, 200]))
def test_any_data(data: Any, flow: bool | None, width: int) -> None:
    sees_to(
        yaml.dump(data, Dumper=DUMPER, default_flow_style=flow, width=width, allow_unicode=True)
    )


def pieces() -> Iterator[str]:
    yield from LESSON.splitlines(keepends=True)
    yield from ("\t", ":", "- ", "? ", "[", "]", "{", "}", "&a ", "*a", "<<: *a\n", "!!int ", "|\n")
    yield from (
        "${",
        "${n}",
        '"',
        "'",
        "#",
        "\n",
        "\r",
        "  ",
        "\x85",
        "\ufeff",
        "---\n",
        "%YAML 1.2\n",
    )


@QUICK
@given(st.lists(st.one_of(st.sampled_from(list(pieces())), st.text(max_size=3)), max_size=30))
@example(["? [a]\n"])
@example(["params: {7: a}\nsteps: '${b}'"])
@example(["title: !!timestamp x\nhosts: !!set {a}\n"])
@example(["hosts: !!pairs [a: b]\n"])
@example(["params: [&a {<<: *a}]\n"])
@example(["hosts:\n  server:\n    calls: |\n\n\n      nope\n    \n"])
@example(["hosts:\n  server:\n    calls: >\n      a\n\n      b\n"])
@example(['params: {n: "a\\nb\\nc"}\nhosts: {s: {calls: "${n}"}}\n'])
@example(['params: {n: "a\\nb\\nc"}\nhosts:\n  s:\n    calls: |\n      ${n}'])
@example(["steps: [{as: [a]}, {when: {variant: {a: b}}}, {since: {}}]\n"])
def test_any_text(parts: list[str]) -> None:
    sees_to("".join(parts))


@QUICK
@given(st.data())
def test_a_lesson_that_was_damaged(data: st.DataObject) -> None:
    text = LESSON
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(st.sampled_from(["", *pieces()])) + text[at + gone :]
    sees_to(text)


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "any.yaml"
    file.write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        load(file)
    assert all(mistake.line >= 1 for mistake in caught.value.mistakes)
