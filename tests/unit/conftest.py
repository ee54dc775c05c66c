"""What several files of unit tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.cli.commands import main
from labctl.judge.result import RunResult
from labctl.run.guests import qemu
from tests.fake import FakeBackend, play
from tests.played import Labctl, Play, lesson


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user of its own, and no engine."""
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def labctl(environment: Path, capsys: pytest.CaptureFixture[str]) -> Labctl:
    """Runs a command: its status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments), prog_name="labctl")
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def qemu_is_asked() -> Iterator[None]:
    """For its version, by each test that has one of its own."""
    qemu.version.cache_clear()
    yield
    qemu.version.cache_clear()


@pytest.fixture
def watch(tmp_path: Path) -> Play:
    def start(steps: str, fake: FakeBackend | None = None, more: str = "") -> RunResult:
        return play(lesson(steps, more), fake or FakeBackend(), tmp_path)

    return start
