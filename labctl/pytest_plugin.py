"""The pytest plugin: scenarios as tests, and the fixture `labctl_lab`.

It is loaded into every pytest of an environment that has labctl. So it does nothing unless asked,
and imports the rest of labctl only then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labctl.runner import RunResult
    from labctl.scenario import Scenario
    from labctl.testing import Lab

LABS = pytest.StashKey[ExitStack]()
"""The labs of a test, which end with its call."""
OUT = pytest.StashKey[Path]()
"""Where runs are recorded."""


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


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """A scenario's file, where that is asked for."""
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
        from labctl.arguments import parse_sets
        from labctl.errors import LabctlError
        from labctl.scenario import load

        try:
            sets = parse_sets(self.config.getoption("labctl_set"), "--labctl-set")
            cases = load(Path(os.path.relpath(self.path)), sets)
        except LabctlError as exc:
            raise self.CollectError(str(exc)) from exc
        for case in cases:
            yield ScenarioItem.from_parent(self, name=case.label, case=case)


class ScenarioItem(pytest.Item):
    """One case of a scenario. What is unknown has not passed."""

    def __init__(self, *, case: Scenario, **more: Any) -> None:
        super().__init__(**more)
        self.case = case

    def runtest(self) -> None:
        """Runs it; what came of it becomes pytest's own outcome."""
        from labctl.errors import LabctlError, Unavailable
        from labctl.testing import ladder, told

        try:
            found = self._run()
        except Unavailable as exc:
            pytest.skip(str(exc))
        except LabctlError as exc:
            pytest.fail(f"error: {exc}", pytrace=False)
        if found.result == "skip":
            pytest.skip(found.reason or "")
        if found.result != "pass":
            self.add_report_section("call", "ladder", ladder(found.folder))
            lines = [f"{found.result}: {found.reason}"] if found.reason else []
            lines.append(told(found.verdicts, found.why, found.folder))
            pytest.fail("\n".join(lines), pytrace=False)

    def _run(self) -> RunResult:
        from labctl import workflow
        from labctl.output import tell
        from labctl.runner import Silent
        from labctl.testing import ready

        option = self.config.getoption
        main = threading.current_thread() is threading.main_thread()
        backend, os = option("labctl_backend"), option("labctl_os")
        chosen = ready(backend, os)
        with workflow.interruptible() if main else nullcontext():
            return workflow.run_case(
                self.case, chosen, Silent(), tell, out(self.config), os or workflow.DEFAULT_OS
            )

    def reportinfo(self) -> tuple[Path, None, str]:
        """What pytest calls it."""
        return self.path, None, self.name


@pytest.fixture
def labctl_lab(request: pytest.FixtureRequest) -> Iterator[Callable[..., Lab]]:
    """Brings up a `labctl.Lab`, as the command line's `--labctl-...` options say, and takes it down
    when the test function has ended. Takes what `labctl.Lab` takes."""
    from labctl.testing import Lab

    config = request.config
    with ExitStack() as labs:
        request.node.stash[LABS] = labs

        def up(*scenario: Any, **more: Any) -> Lab:
            default = {
                "backend": config.getoption("labctl_backend"),
                "os": config.getoption("labctl_os"),
                "out": out(config),
            }
            return labs.enter_context(Lab(*scenario, **{**default, **more}))

        yield up


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Ends a test's labs with its call, so that they learn how it ended, and it what they say."""
    with item.stash.get(LABS, nullcontext()):
        return (yield)


def out(config: pytest.Config) -> Path:
    """Where runs are recorded: one directory a session, or a worker of it."""
    if OUT not in config.stash:
        # What the fixture tmp_path_factory gives; items that are no functions have no fixtures.
        factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
        config.stash[OUT] = config.getoption("labctl_out") or factory.mktemp("labctl")
    return config.stash[OUT]
