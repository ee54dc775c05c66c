"""JUnit XML: a test suite for each run, a test case for each verdict.

There is no single standard. The output is valid by the schema of Jenkins' xUnit plugin, and each
suite also by that of Ant. So times have three decimals, timestamps (UTC) name no zone, and
`testsuites` does not count skipped runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from labctl.ground.plain import plain, plain_lines
from labctl.judge.accounts import account_lines, reasons
from labctl.judge.check import Verdict
from labctl.judge.explain import first_reason
from labctl.judge.result import RunResult
from labctl.reports.rows import behind

TAGS = {"fail": "failure", "unknown": "error", "error": "error", "skip": "skipped"}
"""The words for results that are no pass. JUnit has none for unknown ones."""
COUNTS = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
NEVER = "1970-01-01T00:00:00"


def document(runs: Sequence[RunResult]) -> str:
    """All runs. An unknown result is an error there, since it is no pass."""
    root = Element("testsuites", name="labctl")
    root.extend([_suite(number, run) for number, run in enumerate(runs)])
    counts = _counts(root)
    del counts["skipped"]
    root.attrib |= {**counts, "time": _seconds(sum(run.seconds for run in runs))}
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _suite(number: int, run: RunResult) -> Element:
    name = plain(run.label)
    suite = Element("testsuite", name=name, package=name, id=str(number), hostname="localhost")
    properties = SubElement(suite, "properties")
    for key, value in run.environment.items():
        if value is not None:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            SubElement(properties, "property", name=plain(key), value=plain(text))
    for place, (verdict, lines) in enumerate(behind(run.verdicts), 1):
        suite.append(_case(run, place, verdict, lines))
    whole = run.result in ("pass", "skip") and run.verdicts  # its cases say everything
    if run.result == "error" or (run.reason and not whole):
        case = SubElement(suite, "testcase", name=plain(run.title), classname=name)
        case.set("time", _seconds(run.seconds))
        reason = run.reason or ""
        _outcome(
            case, run.result, reason, "\n".join([reason, *account_lines(run.processes), *run.why])
        )
    words = [run.title, *(f"Why: {sentence}" for sentence in run.why)]
    SubElement(suite, "system-out").text = plain_lines("\n".join(words))
    SubElement(suite, "system-err")
    started = run.started.removesuffix("Z") or NEVER
    suite.attrib |= {**_counts(suite), "time": _seconds(run.seconds), "timestamp": plain(started)}
    return suite


def _case(run: RunResult, place: int, verdict: Verdict, lines: Sequence[str]) -> Element:
    before = run.verdicts[place - 2].at if place > 1 else 0.0
    case = Element("testcase", name=plain(f"{place}. {verdict.what}"), classname=plain(run.label))
    case.set("time", _seconds(verdict.at - before))
    message = f"expected {verdict.expected}, saw {verdict.actual}"
    if verdict.result == "skip":
        _outcome(case, "skip", verdict.actual)
    elif verdict.result != "pass":
        why = first_reason(verdict, run.causes, run.history)
        more = [said for said in reasons(verdict.processes) if f"Why: {said}" not in why]
        told_of = [f"{verdict.source}: {message}", *why, *lines, *more]
        _outcome(case, verdict.result, message, "\n".join(told_of))
    return case


def _outcome(case: Element, result: str, message: str, text: str = "") -> None:
    found = SubElement(case, TAGS[result], message=plain(message))
    if result != "skip":
        found.set("type", result)
        found.text = plain_lines(text)


def _counts(part: Element) -> dict[str, str]:
    """How many cases there are, and how many of them did not pass."""
    return {name: str(len(part.findall(f".//{tag}"))) for name, tag in COUNTS.items()}


def _seconds(seconds: float) -> str:
    return f"{max(0.0, seconds):.3f}"
