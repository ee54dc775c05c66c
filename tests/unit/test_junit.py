"""JUnit XML, by what the schemas of Jenkins (xUnit plugin) and Ant ask for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from labctl.judge import recorded
from labctl.judge.accounts import Account
from labctl.judge.causes.cause import Cause
from labctl.judge.check import Verdict
from labctl.judge.explain import first_reason
from labctl.judge.result import RunResult
from labctl.language.document import Document
from labctl.language.facts import NO_FACTS, Facts
from labctl.language.scenario import load_document
from labctl.reports import github_errors, junit
from tests.fake import FakeBackend, play
from tests.reported import RUN, full, recorded_run
from tests.unit.test_pages import nasty

WHOLE, SECONDS = r"\d+", r"\d+\.\d{1,3}"
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
SOME, ANY = r"(?s).*\S.*", r"(?s).*"
COUNTS = {"tests": WHOLE, "failures": WHOLE, "errors": WHOLE}
ATTRIBUTES = {
    "testsuites": {"name": ANY, "time": SECONDS, **COUNTS},
    "testsuite": {
        "name": SOME, "package": SOME, "id": WHOLE, "hostname": SOME, "timestamp": MOMENT,
        "time": SECONDS, "skipped": WHOLE, **COUNTS,
    },
    "properties": {},
    "property": {"name": SOME, "value": ANY},
    "testcase": {"name": SOME, "classname": SOME, "time": SECONDS},
    "failure": {"type": SOME, "message": ANY},
    "error": {"type": SOME, "message": ANY},
    "skipped": {"message": ANY},
    "system-out": {},
    "system-err": {},
}  # fmt: skip
"""All attributes of each element; each has to be there, and to look so."""
OUTCOMES = "(failure |error |skipped )?"
CHILDREN = {
    "testsuites": "(testsuite )*",
    "testsuite": "properties (testcase )*system-out system-err ",
    "properties": "(property )*",
    "testcase": OUTCOMES,
}
"""The tags below each element, in order; below others is only text."""


def valid(text: str) -> Element:
    """A document that both schemas allow. (Ant's has no attributes of `testsuites`.)"""
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed = ATTRIBUTES[element.tag]
        assert element.attrib.keys() == allowed.keys(), element.tag
        for name, value in element.attrib.items():
            assert re.fullmatch(allowed[name], value), (element.tag, name, value)
        tags = "".join(f"{child.tag} " for child in element)
        assert re.fullmatch(CHILDREN.get(element.tag, ""), tags), (element.tag, tags)
    for suite in root:
        cases = suite.findall("testcase")
        outcomes = Counter(child.tag for case in cases for child in case)
        told = {name: int(suite.attrib[name]) for name in (*COUNTS, "skipped")}
        assert told == {
            "tests": len(cases), "failures": outcomes["failure"], "errors": outcomes["error"],
            "skipped": outcomes["skipped"],
        }  # fmt: skip
    for name in COUNTS:
        assert int(root.attrib[name]) == sum(int(suite.attrib[name]) for suite in root)
    return root


def verdict(result: str, **more: object) -> Verdict:
    found = Verdict("pass", "server: x", "x", "y", 1 / 3, "a.yaml:3", ("one", "two"))
    return replace(found, result=result, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a lesson", "each result", "skip", "error", "nasty", "cut short"])
def test_it_is_valid(name: str) -> None:
    results = ("pass", "fail", "unknown", "skip")
    made: dict[str, Callable[[], RunResult]] = {
        "a lesson": lambda: recorded.load(RUN),
        "each result": lambda: recorded_run(full(), verdicts=tuple(map(verdict, results))),
        "skip": lambda: recorded_run(full(), result="skip", reason="no root"),
        "error": lambda: recorded_run(full(), result="error", reason="a host died\nthere"),
        "nasty": nasty,
        "cut short": lambda: recorded_run(full(), result="error", reason="cut", started=""),
    }
    run = made[name]()
    valid(junit.document([run]))
    assert len(valid(junit.document([run, run]))) == 2  # which are alike, and stay two
    assert not list(valid(junit.document([])))


def test_what_became_of_each_verdict() -> None:
    found = tuple(map(verdict, ("pass", "fail", "unknown", "skip")))
    (suite,) = valid(junit.document([recorded_run(full(), verdicts=found)]))
    outcomes = [[child.tag for child in case] for case in suite.findall("testcase")]
    assert outcomes == [[], ["failure"], ["error"], ["skipped"]]
    (failure,) = suite.iter("failure")
    assert failure.get("message") == "expected x, saw y"
    assert failure.text == "a.yaml:3: expected x, saw y\none\ntwo"


def test_a_failure_has_its_first_cause_and_the_cure() -> None:
    blocked = Cause("bind-time-wait", "server", 1.0, "the port is taken", "set SO_REUSEADDR")
    beside = Cause("accept-queue-full", "server", 0.7, "the queue was full", "accept faster")
    first = Cause("closed-first", "server", 0.5, "server closed first", "nothing")
    other = Cause("bind-time-wait", "client", 0.5, "another host's", "nothing")
    failed = verdict("fail", about=("server",), wanted=Facts(states=("LISTEN",)))
    run = recorded_run(full(), verdicts=(failed,), causes=(other, first, beside, blocked))
    (failure,) = valid(junit.document([run])).iter("failure")
    why = "Why: the port is taken\ndo: set SO_REUSEADDR"
    assert failure.text == f"a.yaml:3: expected x, saw y\n{why}\none\ntwo"
    (line,) = github_errors.lines([run])
    assert line.endswith("expected x, saw y%0AWhy: the port is taken%0Ado: set SO_REUSEADDR")
    known = Account("server", "server", "runs", cause="it listens on :9100")
    run = replace(run, verdicts=(replace(failed, processes=(known,), wanted=NO_FACTS),))
    assert first_reason(run.verdicts[0], run.causes, run.history) == [
        "Why: server: it listens on :9100"
    ]


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "\ufffe", "\udc80", "]]>", "<&\"'>", "\x85"])
def test_no_text_breaks_it(text: str) -> None:
    words = dict.fromkeys(("title", "reason", "scenario"), f"a{text}b")
    found = verdict("fail", what=text, actual=text, evidence=(text,))
    run = recorded_run(full(), verdicts=(found,), result="error", beside=(text,), **words)
    valid(junit.document([replace(run, environment={text: text})]))


STEPS = """\
title: Each variant has steps of its own
variants: [{end: close}, {end: kill}]
hosts: {server: {run: cat}, client: {}}
steps:
  - {when: {variant: {end: close}}, wait: {process: {server: ok}}}
  - {when: {variant: {end: close}}, drop: {to: server, flags: FIN}}
  - {when: {kernel: ">=99"}, expect: {process: {server: ok}}}
  - {when: {variant: {end: close}}, note: closed, as: closed}
  - {wait: {process: {server: ok}}, since: closed}
expect:
  - segments: {flags: FIN, since: closed}
"""


def test_what_another_variant_claims_is_no_test_of_this_one(tmp_path: Path) -> None:
    _, case = load_document(Document("lesson.yaml", STEPS), STEPS, "lesson", {})
    run = recorded.load(play(case, FakeBackend(), tmp_path).folder)
    (suite,) = valid(junit.document([run]))
    assert [case.get("name") for case in suite.iter("testcase")] == ["1. server: ok"]
    assert [s.get("message") for s in suite.iter("skipped")] == ["kernel 6.1.0-fake is not >=99"]
