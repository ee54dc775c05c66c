"""Steps for other variants, which may lack in this one what they need; and ranges of kernels."""

from __future__ import annotations

import pytest

from labctl.ground.errors import ScenarioError
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document

HOSTS = """\
title: t
variants:
  - {end: reset, seq: next+1}
  - {end: none}
hosts:
  server: {calls: "socket; bind :80; listen 1; accept"}
  client: {calls: "socket; connect server:80"}
steps:
  - start: server
"""
RESET = "{variant: {end: reset}}"


def load(steps: str, **sets: str) -> list[Scenario]:
    text = HOSTS + steps
    return load_document(Document("t.yaml", text), text, "t", sets)


def mistakes(steps: str, **sets: str) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        load(steps, **sets)
    return [f"{m.line}: {m.message}" for m in caught.value.mistakes]


@pytest.mark.parametrize(
    "step",
    [
        '{when: %s, inject: {from: client, to: server, flags: RST, seq: "${seq}"}, as: sent}',
        '{when: %s, note: "a reset at ${seq}", as: sent}',
        '{when: %s, sleep: "${seq}", as: sent}',
    ],
)
def test_what_a_step_for_another_variant_lacks_is_no_mistake(step: str) -> None:
    if "sleep" in step:
        step = step.replace("${seq}", "${wait}")
        text = HOSTS.replace("seq: next+1", "wait: 3s")
    else:
        text = HOSTS
    text += f"  - {step % RESET}\n  - {{wait: {{sockets: {{server: LISTEN}}}}, since: sent}}\n"
    reset, none = load_document(Document("t.yaml", text), text, "t", {})
    assert [each.when is not None for each in reset.steps] == [False, True, False]
    assert not reset.steps[1].of_another(reset.variant)
    assert none.steps[1].of_another(none.variant)
    assert (none.steps[1].as_, len(none.steps)) == ("sent", 3)


def test_its_own_variant_still_checks_it() -> None:
    step = f"  - {{when: {RESET}, inject: {{from: client, to: sevrer, seq: next, flags: RST}}}}\n"
    (found,) = mistakes(step)
    assert found.startswith("10: unknown host 'sevrer'")
    typo = f'  - {{when: {RESET}, note: "${{sqe}}"}}\n'
    assert mistakes(typo) == [
        "10: unknown param ${sqe}; allowed: end, seq; did you mean 'seq'?"
    ]  # fmt: skip


def test_a_step_that_every_variant_leaves_out_is_checked() -> None:
    nobody = "  - {when: {variant: {end: rest}}, sleep: a while}\n"
    assert mistakes(nobody)[0].startswith("10: 'a while' is no duration")
    for case in load(nobody, end="none"):  # now that may be why
        assert case.steps[1].of_another(case.variant)


def test_a_step_of_all_variants_lacks_nothing() -> None:
    assert mistakes('  - note: "${seq}"\n') == [
        "10: unknown param ${seq}; allowed: end"
    ]  # fmt: skip
    here = '  - note: "${seq}"\n  - {when: {variant: {end: reset}}, note: "${seq}"}\n'
    assert mistakes(here) == ["10: unknown param ${seq}; allowed: end"]


@pytest.mark.parametrize(
    ("wanted", "kernel", "runs"),
    [
        (">=6.1 <6.12", "6.1.0-13", True), (">=6.1 <6.12", "6.11.9", True),
        (">=6.1 <6.12", "6.12.1", False), (">=6.1 <6.12", "5.10.9", False),
        (">=6.1, <6.12", "6.6.3", True), (">= 6.1 < 6.12", "6.12", False),
        ("!=6.2 !=6.3 >=6", "6.3.1", False), ("!=6.2 !=6.3 >=6", "6.4.1", True),
        ("6.1", "6.1.99", True), (">6.1", "6.1.99", False), (">6.1.5", "6.1.99", True),
    ],
)  # fmt: skip
def test_a_range_of_kernels(wanted: str, kernel: str, runs: bool) -> None:
    step = load(f'  - {{when: {{kernel: "{wanted}"}}, note: now}}\n')[0].steps[1]
    assert step.when
    lacking = step.when.lacking(kernel, "netns", {})
    assert lacking == (None if runs else f"kernel {kernel} is not {wanted}")


def test_a_variant_has_its_kernels() -> None:
    text = HOSTS.replace("seq: next+1", 'kernels: ">=6.1 <6.12"').replace(
        "end: none", 'end: none, kernels: ">=6.12"'
    )
    text += '  - {when: {kernel: "${kernels}"}, note: now}\n'
    old, new = load_document(Document("t.yaml", text), text, "t", {})
    for case, fits in ((old, True), (new, False)):
        when = case.steps[1].when
        assert when
        assert (when.lacking("6.6", "netns", {}) is None) == fits


@pytest.mark.parametrize("wrong", ["new", ">=6.1 or <6", ">=6.1 <", "6.1-6.12", "true"])
def test_no_range_of_kernels(wrong: str) -> None:
    (found,) = dict.fromkeys(mistakes(f'  - {{when: {{kernel: "{wrong}"}}, note: now}}\n'))
    assert 'is no kernel version; allowed: ">=6.14", "<6.1", ">=6.1 <6.12"' in found
