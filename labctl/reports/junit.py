"""JUnit XML: a test suite a run, a test case a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from labctl.accounts import reasons, told
from labctl.check import Verdict
from labctl.reports.recorded import RecordedRun
from labctl.reports.rungs import behind, clean


def document(runs: Sequence[RecordedRun]) -> str:
    """All runs. What is unknown is an error there: JUnit has no word for it, and it is no pass."""
    xml = JUnitXml("labctl")
    for run in runs:
        # add_testsuite() would put those of one name together.
        xml.append(_suite(run))  # type: ignore[no-untyped-call]
    xml.update_statistics()  # type: ignore[no-untyped-call]
    text: bytes = xml.tostring()  # type: ignore[no-untyped-call]
    return "\n".join(map(clean, text.decode().split("\n"))) + "\n"


def _suite(run: RecordedRun) -> TestSuite:
    suite = TestSuite(run.label)
    suite.timestamp = run.started
    for name, value in run.environment.items():
        if value is not None:
            suite.add_property(name, " ".join(value) if isinstance(value, list) else str(value))
    for number, (verdict, lines) in enumerate(behind(run.verdicts), 1):
        suite.add_testcase(_case(run, number, verdict, lines))
    if run.result != "pass" and run.reason:
        case = TestCase(run.title, run.label, run.seconds)
        outcome = {"skip": Skipped, "fail": Failure}.get(run.result, Error)
        case.result = [outcome(run.reason)]
        case.result[0].text = "\n".join([run.reason, *told(run.processes), *run.why])
        suite.add_testcase(case)
    return suite


def _case(run: RecordedRun, number: int, verdict: Verdict, lines: Sequence[str]) -> TestCase:
    before = run.verdicts[number - 2].at if number > 1 else 0.0
    case = TestCase(f"{number}. {verdict.what}", run.label, max(0.0, verdict.at - before))
    message = f"expected {verdict.expected}, saw {verdict.actual}"
    known = reasons(verdict.processes)
    text = "\n".join([f"{verdict.source}: {message}", *lines, *known])
    if verdict.result == "fail":
        case.result = [Failure(message, "fail")]
        case.result[0].text = text
    elif verdict.result == "unknown":
        case.result = [Error(message, "unknown")]
        case.result[0].text = text
    elif verdict.result == "skip":
        case.result = [Skipped(verdict.actual)]
    return case
