"""The pytest plugin: scenarios as tests, and the fixture `labctl_lab`.

It is loaded into every pytest of an environment that has labctl. So it does nothing unless asked,
and imports the rest of labctl only then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labctl.judge.result import RunResult
    from labctl.language.scenario import Scenario
    from labctl.run.workers import Work
    from labctl.testing.lab import Lab

LABS = pytest.StashKey[ExitStack]()
"""The labs of a test, which end with its call."""
OUT = pytest.StashKey[Path]()
"""The folder for runs."""
PARAMS = pytest.StashKey[set[str]]()
"""The params of all scenarios that were collected."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """See `pytest --help`."""
    enabled = "collect .yaml files as scenarios of labctl"
    parser.addini("labctl_scenarios", enabled, "bool", default=False)
    group = parser.getgroup("labctl")
    group.addoption("--labctl", action="store_true", help=enabled)
    group.addoption(
        "--labctl-backend",
        choices=["auto", "docker", "netns"],
        default="auto",
        help="where labs run; auto takes Docker where an engine answers",
    )
    group.addoption(
        "--labctl-os",
        metavar="IMAGE",
        help="the operating system of the images (Docker); debian:12 unless told otherwise",
    )
    group.addoption(
        "--labctl-engine",
        action="append",
        default=[],
        metavar="[NAME=]WHERE",
        help="a Docker engine; of several, each scenario is on the one that is least full",
    )
    group.addoption(
        "--labctl-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="overrides a param of the scenarios",
    )
    group.addoption(
        "--labctl-out",
        type=Path,
        metavar="DIR",
        help="where runs are recorded; pytest's temporary directory unless told otherwise",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Raises UsageError for a bad option."""
    config.addinivalue_line(
        "markers", "labctl: a scenario of labctl, or a test with labctl_lab: it needs a lab"
    )
    _sets(config)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """A scenario's file, if somebody asked for scenarios."""
    config = parent.config
    if file_path.suffix not in (".yaml", ".yml"):
        return None
    if not config.getoption("labctl") and not config.getini("labctl_scenarios"):
        return None
    return ScenarioFile.from_parent(parent, path=file_path)


class ScenarioFile(pytest.File):
    """A file; its variants are tests, each by its label."""

    def collect(self) -> Iterator[ScenarioItem]:
        """Raises CollectError with every mistake of the file."""
        from labctl.ground.crash import netted
        from labctl.ground.errors import LabctlError
        from labctl.ground.plain import plain
        from labctl.language.document import Document
        from labctl.language.scenario import load_document, params_of
        from labctl.language.services import check_services

        given = _sets(self.config)
        try:
            with netted():
                document = Document.read(Path(os.path.relpath(self.path)))
                params = params_of(document)
                self.config.stash.setdefault(PARAMS, set()).update(params)
                sets = {name: value for name, value in given.items() if name in params}
                cases = check_services(load_document(document, document.text, self.path.stem, sets))
        except LabctlError as exc:
            raise self.CollectError(str(exc)) from exc
        for case in cases:
            yield ScenarioItem.from_parent(self, name=plain(case.label), case=case)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test that brings up labs is marked as scenarios are."""
    if "labctl_lab" in getattr(item, "fixturenames", ()):
        item.add_marker("labctl")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Raises UsageError if --labctl-set names a param that no scenario has. A worker of
    pytest-xdist can't do that: there the scenarios fail."""
    message = _no_param(session.config)
    if message and not session.testsfailed and not hasattr(session.config, "workerinput"):
        raise pytest.UsageError(message)


def _no_param(config: pytest.Config) -> str:
    """What is wrong with --labctl-set, by the scenarios that were collected."""
    known = config.stash.get(PARAMS, None)
    wrong = sorted(_sets(config).keys() - known) if known is not None else []
    if not wrong:
        return ""
    from labctl.language.values import unknown

    return f"--labctl-set {wrong[0]}: {unknown('param', wrong[0], sorted(known or ()))}"


def _sets(config: pytest.Config) -> dict[str, str]:
    texts = config.getoption("labctl_set")
    if not texts:
        return {}
    from labctl.cli.arguments import parse_sets
    from labctl.ground.errors import LabctlError

    try:
        return parse_sets(texts, "--labctl-set")
    except LabctlError as exc:
        raise pytest.UsageError(str(exc)) from exc


class ScenarioItem(pytest.Item):
    """One case of a scenario. An unknown result has not passed."""

    def __init__(self, *, case: Scenario, **more: Any) -> None:
        super().__init__(**more)
        self.case = case
        self.add_marker("labctl")

    def runtest(self) -> None:
        """Runs it; its result becomes pytest's own outcome."""
        from labctl.ground.crash import netted
        from labctl.ground.errors import LabctlError, Unavailable
        from labctl.ground.plain import plain_lines
        from labctl.judge.explain import foremost
        from labctl.judge.recorded import reloaded
        from labctl.reports.ladder_text import picture
        from labctl.testing.recording import failure_text, why_lines

        if message := _no_param(self.config):
            pytest.fail(message, pytrace=False)
        try:
            with netted():
                found = self._run()
                drawn = "" if found.result in ("pass", "skip") else picture(reloaded(found))
        except Unavailable as exc:
            pytest.skip(str(exc))
        except LabctlError as exc:
            pytest.fail(f"error: {exc}", pytrace=False)
        if found.result == "skip":
            pytest.skip(plain_lines(found.reason or ""))
        if found.result != "pass":
            self.add_report_section("call", "ladder", drawn)
            lines = [f"{found.result}: {found.reason}"] if found.reason else []
            causes = foremost(found.causes, found.verdicts, found.history)
            why = why_lines(causes, found.beside, found.folder)
            lines.append(failure_text(found.verdicts, why, found.folder, found.processes))
            pytest.fail(plain_lines("\n".join(lines)), pytrace=False)

    def _run(self) -> RunResult:
        from labctl.ground.output import tell
        from labctl.run import workflow
        from labctl.run.runner import Silent
        from labctl.testing.lab import ready

        option = self.config.getoption
        main = threading.current_thread() is threading.main_thread()
        engines = tuple(option("labctl_engine"))
        place = ready(option("labctl_backend"), option("labctl_os"), engines)
        work: Work = partial(workflow.run_in, place=place)
        if len(engines) > 1:
            from labctl.run.spread import Spread

            work = Spread.over(place, tell).begin(0, self.case)
        with workflow.interruptible() if main else nullcontext():
            folder = workflow.new_run(self.case, out(self.config))
            return work(folder, self.case, Silent(), tell)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Its name in pytest."""
        return self.path, None, self.name


@pytest.fixture
def labctl_lab(request: pytest.FixtureRequest) -> Iterator[Callable[..., Lab]]:
    """Brings up a `labctl.Lab`, by the command line's `--labctl-...` options, and takes it down
    when the test function has ended. Takes the arguments of `labctl.Lab`."""
    from labctl.testing.lab import Lab

    config = request.config
    with ExitStack() as labs:
        request.node.stash[LABS] = labs

        def up(*scenario: Any, **more: Any) -> Lab:
            default = {
                "backend": config.getoption("labctl_backend"),
                "os": config.getoption("labctl_os"),
                "engines": config.getoption("labctl_engine"),
                "out": out(config),
            }
            return labs.enter_context(Lab(*scenario, **{**default, **more}))

        yield up


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """If a test's set-up fails, ends the test's labs with that exception: it is never called."""
    try:
        return (yield)
    except BaseException:
        with item.stash.get(LABS, nullcontext()):
            raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Ends a test's labs with its call, so that they learn how it ended, and it what they say."""
    try:
        with item.stash.get(LABS, nullcontext()):
            return (yield)
    except pytest.fail.Exception as exc:
        if not exc.pytrace:  # pytest would leave out what they say
            item.add_report_section("call", "ladder", "\n".join(getattr(exc, "__notes__", ())))
        raise


def out(config: pytest.Config) -> Path:
    """The folder for runs: one directory for each session, or for each worker of it."""
    if OUT not in config.stash:
        # What the fixture tmp_path_factory gives; items that are no functions have no fixtures.
        factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
        config.stash[OUT] = config.getoption("labctl_out") or factory.mktemp("labctl")
    return config.stash[OUT]
