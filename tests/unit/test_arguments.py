"""What a command line says of scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.cli.arguments import find
from labctl.ground.errors import UsageError
from labctl.ground.resources import catalogue


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped, mine = tmp_path / "shipped", tmp_path / "mine"
    for file in (
        "shipped/a.yaml",
        "shipped/deep/b.yaml",
        "mine/c.yml",
        "mine/d.yaml",
        "mine/e.txt",
        "mine/.github/w.yml",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert find(["b", "a"], shipped) == [shipped / "deep/b.yaml", shipped / "a.yaml"]
    for name in ("deep/b", "deep", "deep/"):
        assert find([name], shipped) == [shipped / "deep/b.yaml"]
    assert list(catalogue(shipped)) == ["a", "deep/b"]
    (shipped / "peers").mkdir()
    (shipped / "peers" / "c.yaml").touch()
    assert list(catalogue(shipped)) == ["a", "deep/b"]
    for everything in ("scenarios", str(shipped)):
        assert find([everything], shipped) == [shipped / "a.yaml", shipped / "deep/b.yaml"]
    for apart in ("peers", "peers/c", "scenarios/peers", "scenarios/peers/c.yaml", "c",
                  str(shipped / "peers")):  # fmt: skip
        assert find([apart], shipped) == [shipped / "peers/c.yaml"]
    with pytest.raises(UsageError, match="no shipped scenario") as caught:
        find(["peers/d"], shipped)
    assert "did you mean 'peers/c'?" in str(caught.value.hint)
    (shipped / "peers" / "c.yaml").unlink()
    assert find([str(mine)], shipped) == [mine / "c.yml", mine / "d.yaml"]
    assert find([str(mine / "e.txt"), str(mine / "e.txt")], shipped) == [mine / "e.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no scenario in this folder"):
        find([str(tmp_path / "empty")], shipped)
    (tmp_path / "restart.labctl.yaml").touch()
    with pytest.raises(UsageError) as caught:
        find(["restart.yaml"], shipped)
    assert str(caught.value.hint).startswith(
        "did you mean 'restart.labctl.yaml'? see `labctl list`"
    )
    for absent in ("c", "*", "**", "/nowhere", "dee", "../mine/d", "a.yaml"):
        with pytest.raises(UsageError, match="no such file, and no shipped scenario"):
            find([absent], shipped)
