"""What several files of unit tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.judge.result import RunResult
from tests.fake import FakeBackend, play
from tests.played import Play, lesson


@pytest.fixture
def watch(tmp_path: Path) -> Play:
    def start(steps: str, fake: FakeBackend | None = None, more: str = "") -> RunResult:
        return play(lesson(steps, more), fake or FakeBackend(), tmp_path)

    return start
