"""Values of a file: params as they were written, and variants that are equal in value and type."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import labctl
from labctl.ground.errors import ScenarioError
from labctl.ground.written import same, words
from labctl.judge import recorded, rejudge
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.run.matrix import Matrix
from labctl.run.places import Place
from tests.fake import FakeBackend, play
from tests.unit.test_testing import HOSTS as LAB_HOSTS

pytest_plugins = ["pytester"]

HOSTS = "hosts: {server: {run: 'true'}, client: {}}\n"
WRITTEN = ["true", "True", "null", "~", "6.20", "010", "0x10", "1e3", "1:30", "1_000", "+7", "-0",
           "0o7", ".5", "yes", "2026-01-01", '"6.20"', "'a b'"]  # fmt: skip


def cases(text: str, **sets: str) -> list[Scenario]:
    return load_document(Document("case.yaml", text), text, "case", sets)


def case(text: str, **sets: str) -> Scenario:
    (found,) = cases(text, **sets)
    return found


def notes(params: str, *texts: str, **sets: str) -> list[str]:
    """What notes with these texts say."""
    steps = "".join(f"  - note: {text}\n" for text in texts)
    found = case(f"title: t\nparams: {params}\n{HOSTS}steps:\n{steps}", **sets)
    return [str(step).removeprefix("note ") for step in found.steps]


def mistakes(text: str) -> list[tuple[int, str]]:
    with pytest.raises(ScenarioError) as caught:
        cases(text)
    return [(mistake.line, mistake.message) for mistake in caught.value.mistakes]


# Params in texts, and as values


@pytest.mark.parametrize("written", WRITTEN)
def test_in_a_text_a_param_stands_as_it_was_written(written: str) -> None:
    wanted = written.strip("'\"")
    assert notes(f"{{p: {written}, q: 'see ${{p}}'}}", "=${p}", "${q}") == [
        f"={wanted}", f"see {wanted}"
    ]  # fmt: skip
    assert notes("{p: 0}", "=${p}", p=written) == [f"={wanted}"]


def test_a_number_stands_as_it_was_written_where_a_text_is_wanted() -> None:
    text = """\
title: 6.20
params: {v: 6.20, oct: 010}
hosts:
  server: {run: [echo, 6.20, "${v}", 010, 1:30], env: {V: "${v}", O: 010}}
  client: {}
steps:
  - exec: {server: 010}
  - note: ${oct}
    when: {kernel: 6.20}
  - expect: {process: {server: {output: "${v}"}}}
"""
    found = case(text)
    assert found.title == "6.20"
    assert found.processes["server"].run == ("echo", "6.20", "6.20", "010", "1:30")
    assert found.processes["server"].env == {"V": "6.20", "O": "010"}
    assert [str(step) for step in found.steps] == [
        "exec server: 010", "note 010", "expect server output '6.20'"
    ]  # fmt: skip
    when = found.steps[1].when
    assert when
    assert when.lacking("6.2.0", "netns", {}) == "kernel 6.2.0 is not 6.20"
    assert when.lacking("6.20.1", "netns", {}) is None


def test_as_a_whole_value_a_param_keeps_its_type() -> None:
    text = f"""\
title: t
params: {{n: 0x10, deep: {{n: "${{n}}"}}, bare: true}}
{HOSTS}steps:
  - sleep: ${{n}}
  - drop: {{from: server, flags: FIN, bare: "${{bare}}", count: "${{n}}"}}
  - expect: {{process: {{server: {{exit: "${{n}}"}}}}}}
"""
    sleep, drop, expect = case(text).steps
    assert str(sleep) == "sleep 16 s"
    assert str(drop) == "drop 16 x bare FIN from server"
    assert str(expect) == "expect server exit 16"
    assert str(case(text, n="010").steps[0]) == "sleep 8 s"
    assert mistakes(text.replace("0x10", '"0x10"'))[-1] == (
        7, "a whole number is wanted here, not '0x10'"
    )  # fmt: skip


def test_params_in_params_are_filled_in_everywhere() -> None:
    text = f"""\
title: t
params:
  port: 8000
  who: server
  want: {{"${{who}}": {{output: "port ${{port}}", exit: "${{code}}"}}}}
  code: 3
  all: ["${{who}}", "${{port}}", {{"${{who}}": ["${{code}}"]}}]
variants: [{{v: "${{all}}"}}]
{HOSTS}steps:
  - expect: {{process: "${{want}}"}}
  - note: with all
    when: {{variant: {{v: "${{all}}"}}}}
  - note: with what that is
    when: {{variant: {{v: [server, 8000, {{server: [3]}}]}}}}
"""
    found = case(text)
    assert str(found.steps[0]) == "expect server exit 3, output 'port 8000'"
    assert found.label == "case (v [server, 8000, {server: [3]}])"
    for step in found.steps[1:]:
        assert step.when
        assert step.when.lacking("6.1", "netns", dict(found.variant)) is None
    changed = case(text, port="010")
    assert str(changed.steps[0]) == "expect server exit 3, output 'port 010'"
    assert changed.label == "case (v [server, 010, {server: [3]}])"
    assert json.loads(json.dumps(changed.variant)) == {"v": ["server", 8, {"server": [3]}]}


@pytest.mark.parametrize(
    "params",
    [
        '{a: "${a}"}', '{a: "x${a}"}', '{a: "${b}", b: "${a}"}', '{a: {x: "${a}"}}',
        '{a: ["${b}"], b: {x: ["${a}"]}}', '{a: "${b}", b: "x ${c}", c: "${a}"}',
        '{a: {"${a}": 1}}',
    ],
)  # fmt: skip
def test_params_that_refer_to_themselves(params: str) -> None:
    for step in ("", "{note: '${a}'}", "{note: 'about ${a}'}"):
        found = mistakes(f"title: t\nparams: {params}\n{HOSTS}steps: [{step}]\n")
        assert found[0][0] == 2
        for _, message in found:
            assert re.search(r"refers to itself$|can't stand in a text", message)


def test_a_long_way_to_a_value() -> None:
    params = ", ".join(f'p{n}: "${{p{n + 1}}}"' for n in range(2000))
    found = mistakes(f"title: ${{p0}}\nparams: {{{params}, p2000: x}}\n{HOSTS}steps: []\n")
    assert found == [(2, "params refer to others 40 times over")]


def test_what_can_not_stand_in_a_text() -> None:
    text = f"""\
title: t
params: {{some: [a], more: {{a: b}}}}
{HOSTS}steps:
  - note: about ${{some}}
  - sleep: ${{more}}s
"""
    assert mistakes(text) == [
        (5, "the param ${some} is a list, and can't stand in a text; make it the whole of a value"),
        (6, "the param ${more} is a mapping, and can't stand in a text; make it the whole of a "
            "value"),
    ]  # fmt: skip


def test_mistakes_in_a_param_are_told_where_they_stand() -> None:
    text = """\
title: t
params:
  want:
    outptu: x
  calls: |
    socket
    bnid :80
  pause: ${nowhere}
hosts: {server: {calls: "${calls}"}, client: {}}
steps:
  - expect: {process: {server: "${want}"}}
  - sleep: ${pause}
  - sleep: 1${pause}
"""
    found = mistakes(text)
    assert [line for line, _ in found] == [4, 7, 8]
    assert [message.partition(";")[0] for _, message in found] == [
        "unknown key 'outptu'", "unknown call 'bnid'", "unknown param ${nowhere}"
    ]  # fmt: skip


# Variants

TEXTS = st.text(st.characters(codec="ascii") | st.sampled_from("äß→\x9b\u2028"), max_size=5)
SCALARS = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-3, 300),
    st.sampled_from(["6.2", "6.20", "010", "0x10", "1.0", "1", "true", "null", "~"]).map(
        lambda text: yaml.ScalarNode("tag:yaml.org,2002:str", text)
    ),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=4,
)


class Dumper(yaml.SafeDumper):
    """Writes what is no text as it is."""


def _plain(dumper: yaml.Dumper, node: yaml.ScalarNode) -> yaml.ScalarNode:
    """A scalar without quotation marks."""
    tag = dumper.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
    return yaml.ScalarNode(tag, node.value)


Dumper.add_representer(yaml.ScalarNode, _plain)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5))
def test_labels_tell_values_apart(values: list[Any]) -> None:
    """Two variants are one case if they are written alike, and else have labels of their own; what
    is equal in value and type is what `when` takes for the same."""
    head = yaml.dump(
        {"title": "t", "variants": [{"v": v} for v in values]}, Dumper=Dumper, allow_unicode=True
    )
    found = cases(f"{head}\n{HOSTS}steps: []\n")
    assert len({one.label for one in found}) == len(found) <= len(values)
    for one in found:
        for other in found:
            alike = same(one.variant["v"], other.variant["v"])
            assert alike or one is not other
            assert not alike or words(json.loads(json.dumps(one.variant))) == words(
                json.loads(json.dumps(other.variant))
            )
        again = Document("label", f"v: [{one.case.removeprefix('v ')}]").expand(None).data
        assert same(again, {"v": [one.variant["v"]]})


def test_four_that_are_equal_to_python(tmp_path: Path) -> None:
    text = f"""\
title: t
variants:
  [{{v: 1}}, {{v: 1.0}}, {{v: true}}, {{v: "1"}}, {{v: 1}}, {{v: 01}}, {{v: on}}, {{v: "true"}}]
{HOSTS}steps:
  - note: a
    when: {{variant: {{v: on}}}}
"""
    with pytest.raises(ScenarioError, match=r":7: variants differ in how 'v' is written alone"):
        cases(text)
    found = cases(text.replace(" {v: 01},", ""))
    labels = ["case (v 1)", "case (v 1.0)", "case (v true)", 'case (v "1")', "case (v on)",
              'case (v "true")']  # fmt: skip
    assert [one.label for one in found] == labels
    assert [one.label for one in cases(text.partition("  - note")[0] + "  []\n")][
        4
    ] == "case (v 01)"

    runs = [play(one, FakeBackend(), tmp_path) for one in found]
    assert len({run.folder for run in runs}) == len(runs)
    for one, run in zip(found, runs, strict=True):
        assert recorded.load(run.folder).label == one.label
    matrix, place = Matrix(found, {}, tmp_path), Place("netns")
    for one in found:
        play(one, FakeBackend(), matrix.folder(place))
    assert [run["case"] for run in matrix.seen(place).document["runs"]] == [
        one.case for one in found
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (1, True, False), (1, 1.0, False), (1, "1", False), (0, False, False), (0, None, False),
        (None, None, True), ("", None, False), (1.5, 1.5, True), ([1], [True], False),
        ({"a": 1}, {"a": 1.0}, False), ({"a": [1, {}]}, {"a": [1, {}]}, True), ([], {}, False),
        ([1], [1, 2], False), ({"a": None}, {}, False), ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
    ],
)  # fmt: skip
def test_the_same_value(one: Any, other: Any, alike: bool) -> None:
    assert same(one, other) == same(other, one) == alike


def test_when_wants_a_variant_of_the_same_type() -> None:
    text = f"title: t\nvariants: [{{v: true}}, {{v: 1}}, {{w: null}}]\n{HOSTS}steps:\n"
    text += "  - {note: a, when: {variant: {v: 1}}}\n  - {note: b, when: {variant: {v: null}}}\n"
    lacking = [
        [step.when.lacking("6.1", "netns", dict(c.variant)) for step in c.steps if step.when]
        for c in cases(text)
    ]
    assert lacking == [
        ["variant has v true, not 1", "variant has v true, not null"],
        [None, "variant has v 1, not null"],
        ["variant has v none, not 1", "variant has v none, not null"],
    ]


def test_a_case_needs_no_param_of_another() -> None:
    text = f"title: t\nvariants: [{{x: 1, v: '${{x}}'}}, {{v: 2}}]\n{HOSTS}steps: []\n"
    assert [one.label for one in cases(text)] == ["case (x 1, v 1)", "case (v 2)"]
    text = f"title: t\nparams: {{p: '${{x}}'}}\nvariants: [{{x: 1}}, {{p: 3}}]\n{HOSTS}steps: []\n"
    assert [one.label for one in cases(text)] == ["case (x 1)", "case (p 3)"]
    assert mistakes(text.replace("{p: 3}", "{q: 3}")) == [
        (2, "unknown param ${x}; allowed: p, q")
    ]  # fmt: skip


def test_a_case_goes_to_another_process() -> None:
    """With what it knows of how its values were written."""
    text = f"title: t\nvariants: [{{v: 6.20, n: 010, f: true}}]\n{HOSTS}steps:\n  - note: ${{v}}\n"
    one = case(text)
    again = pickle.loads(pickle.dumps(one))
    assert (again.label, again) == ("case (v 6.20, n 010, f true)", one)


def test_older_records_have_a_variant_alone(tmp_path: Path) -> None:
    text = f"title: t\nvariants: [{{v: 1}}, {{v: plain, w: true}}]\n{HOSTS}steps: []\n"
    for one in cases(text):
        run = play(one, FakeBackend(), tmp_path)
        path = run.folder / "result.json"
        document = json.loads(path.read_text())
        del document["runs"][0]["case"]
        path.write_text(json.dumps(document))
        assert recorded.load(run.folder).label == one.label
        assert rejudge.judge(run.folder) == []


def test_each_variant_is_a_test_of_its_own(pytester: pytest.Pytester) -> None:
    (pytester.path / "two.yaml").write_text(
        f"title: t\nvariants: [{{n: 1}}, {{n: 1.0}}, {{n: '1'}}]\n{HOSTS}steps: []\n"
    )
    shown = pytester.runpytest_inprocess("--collect-only", "-q", "--labctl")
    assert [line for line in shown.outlines if "::" in line] == [
        "two.yaml::two (n 1)", "two.yaml::two (n 1.0)", 'two.yaml::two (n "1")'
    ]  # fmt: skip


def test_the_record_of_a_lab_has_params_as_they_were_written() -> None:
    given = yaml.safe_dump({"hosts": LAB_HOSTS})
    text = f"""\
title: t
params: {{v: 6.20, flag: True, nothing: ~, list: ["${{v}}"]}}
variants: [{{n: 1}}, {{n: 1.0}}]
{given}
steps:
  - note: ${{v}} ${{flag}} ${{nothing}} ${{n}}
  - exec: {{server: 6.20}}
"""
    lab = labctl.Lab(text, sets={"n": "1.0"})
    record = lab._case.text
    again = load_document(Document("scenario.yaml", record), record, "again", {"n": "1.0"})
    assert [one.case for one in again] == [lab._case.case] == ["n 1.0"]
    assert [str(step) for step in again[0].steps] == ["note 6.20 True ~ 1.0", "exec server: 6.20"]


def test_values_that_look_alike_are_shown_otherwise() -> None:
    """A letter with its accent, and a letter and an accent."""
    assert words("\u00e9") == "\u00e9"
    assert words("e\u0301") == '"e\\u0301"'
