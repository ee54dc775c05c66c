"""Skips what this machine can't run, each with the reason, and says so once more at the end. In CI
as root, for which engine.py has installed all that tests need, that is a failure instead."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

from tests import CI

# A machine may be busy, and no test is about how long a thing takes.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("busy"), max_examples=40)
settings.load_profile("busy" if os.environ.get("LABCTL_TEST_ALL") else "quick")

os.environ.pop("GITHUB_ACTIONS", None)  # there failed claims are annotations, too

# A shell has its background jobs ignore Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NO_ENGINE = os.environ.get("LABCTL_TEST_NO_ENGINE")  # from engine.py
COMPLETE = CI and sys.platform == "linux" and os.geteuid() == 0
OF_THE_MACHINE = (
    "netem", "tracefs", "traced", "this kernel", "IPv6", "first network namespace", "cgroup",
    "launched by then", "is not >=",
)  # fmt: skip
"""Words of reasons that no package mends: what this machine's kernel was built without."""
COSTLY = {
    "test_any_scenario", "test_any_sockets", "test_bounds", "test_cli", "test_model", "test_output",
    "test_pages", "test_records", "test_schema", "test_timelines",
}  # fmt: skip
"""Unit tests that compute for long. Measuring would make that twice as long, and they run next to
nothing that no other test runs."""
CUT_SHORT = "default::pytest.PytestUnraisableExceptionWarning"
"""What leaves a request to an engine half done leaves its socket to whoever comes next: that is
told there, and no failure."""
MINUTES = "it takes minutes: it runs in CI, and where LABCTL_TEST_ALL is set"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes long begins first: the rest can run beside it.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.path.parent.name != "unit" or item.path.stem in COSTLY:
            item.add_marker(pytest.mark.no_cover)
        if item.path.parent.name != "unit":
            item.add_marker(pytest.mark.filterwarnings(CUT_SHORT))
        if item.get_closest_marker("ci") and not CI and not os.environ.get("LABCTL_TEST_ALL"):
            item.add_marker(pytest.mark.skip(reason=MINUTES))
        if NO_ENGINE and item.get_closest_marker("docker"):
            item.add_marker(pytest.mark.skip(reason=NO_ENGINE))
        if item.get_closest_marker("netns") and (reason := no_namespaces()):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is there by now is no test's, and `unclosed` need not look through it


@pytest.fixture(scope="module", autouse=True)
def unclosed() -> Iterator[None]:
    """Finds what a file's tests left open while it is theirs: it fails the file's last test, and
    none of another file."""
    yield
    gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if COMPLETE and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(word in reason for word in OF_THE_MACHINE):
            report.outcome, report.longrepr = "failed", f"nothing may be skipped in CI: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after pytest's own summary
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    yield
    if NO_ENGINE:
        terminalreporter.write_line(f"Docker tests were left out: {NO_ENGINE}", yellow=True)


@cache
def no_namespaces() -> str | None:
    """Why no namespaces can be had here, asked of the system rather than of labctl."""
    for tool, package in {"unshare": "util-linux", "ip": "iproute2", "ss": "iproute2"}.items():
        if not shutil.which(tool):
            return f"{tool} is not on the PATH: install {package}"
    flags = "-nmpf" if os.geteuid() == 0 else "-Urnmpf"
    probe = ["unshare", flags, "--kill-child", "--mount-proc", "true"]
    answer = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"no namespaces here: {answer.stderr.strip()}" if answer.returncode else None
