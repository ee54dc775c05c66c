"""What a command line says of scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.cli.arguments import find
from labctl.ground.errors import UsageError
from labctl.ground.resources import catalogue


def test_find(tmp_path: Path) -> None:
    shipped, mine = tmp_path / "shipped", tmp_path / "mine"
    for file in (
        "shipped/a.yaml",
        "shipped/deep/b.yaml",
        "mine/c.yml",
        "mine/d.yaml",
        "mine/e.txt",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert find(["b", "a"], shipped) == [shipped / "deep/b.yaml", shipped / "a.yaml"]
    for name in ("deep/b", "deep", "deep/"):
        assert find([name], shipped) == [shipped / "deep/b.yaml"]
    assert list(catalogue(shipped)) == ["a", "deep/b"]
    assert find([str(mine)], shipped) == [mine / "c.yml", mine / "d.yaml"]
    assert find([str(mine / "e.txt"), str(mine / "e.txt")], shipped) == [mine / "e.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no scenario in this folder"):
        find([str(tmp_path / "empty")], shipped)
    for absent in ("c", "*", "**", "/nowhere", "dee", "../mine/d", "a.yaml"):
        with pytest.raises(UsageError, match="no such file; unknown scenario"):
            find([absent], shipped)
