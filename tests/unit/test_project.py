"""Compose, the program: which one is taken, and what is made of what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from labctl.backends.docker.project import Compose, find, reason, version
from labctl.ground.errors import LabError, Unavailable

NEW = """\
#!/bin/sh
[ "$1" = version ] && echo v5.6.1 && exit
[ "$4 $5" = "--format json" ] || exit 1
echo '{"name": "shop", "services": {"api": {}, "web": {"image": "nginx"}}}'
"""
OLD = """\
#!/bin/sh
[ "$1" = version ] && echo 1.29.2 && exit
[ "$4" = --format ] && echo "Usage: config [options]" >&2 && exit
printf '%s\\n' "services:" "  api: {build: .}" "  web: {image: nginx}" "version: '3.9'"
"""
BROKEN = """\
#!/bin/sh
echo 'time="2026-11-28" level=warning msg="something"' >&2
echo "services.a.image must be a string" >&2
exit 15
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's own plugin of Docker would be."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "cli-plugins").mkdir()
    return tmp_path / "cli-plugins" / "docker-compose"


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_users_own_plugin_comes_first(plugin: Path) -> None:
    assert find() != plugin
    program(plugin, NEW)
    assert find() == plugin
    assert version() == f"Compose 5.6.1, {plugin}"
    program(plugin, BROKEN)
    assert version() is None


def test_what_the_path_has_comes_last(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    path = program(tmp_path / "bin-compose", OLD)
    (tmp_path / "path").mkdir()
    path.rename(tmp_path / "path" / "docker-compose")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    found = find()
    assert found is not None
    assert found == tmp_path / "path" / "docker-compose" or found.parent.name == "cli-plugins"


@pytest.mark.parametrize(("text", "image"), [(NEW, "shop-api"), (OLD, "myshop_api")])
def test_an_image_that_is_built_has_the_name_that_compose_gives_it(
    plugin: Path, tmp_path: Path, text: str, image: str
) -> None:
    folder = tmp_path / "My Shop"
    folder.mkdir()
    program(plugin, text)
    found = Compose.of(str(folder / "compose.yaml")).config()
    assert {name: each["image"] for name, each in found["services"].items()} == {
        "api": image,
        "web": "nginx",
    }


def test_what_it_complains_about_is_told(plugin: Path, tmp_path: Path) -> None:
    program(plugin, BROKEN)
    with pytest.raises(LabError, match=r"did not read the project: services\.a\.image must"):
        Compose.of(str(tmp_path / "compose.yaml")).config()


@pytest.mark.parametrize(
    ("complained", "why"),
    [
        ("", "it does not say why"),
        ("Creating\n\ncontainer api is unhealthy\n", "container api is unhealthy"),
        ("a\nERROR: for web  Container is unhealthy.\nEncountered errors\n",
         "for web  Container is unhealthy."),
        ("The file is invalid because:\n'name' is wrong\n\nYou might\nFor more\n",
         "The file is invalid because: 'name' is wrong"),
    ],
)  # fmt: skip
def test_why_it_failed(complained: str, why: str) -> None:
    assert reason(complained) == why


def test_without_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    if found := find():  # this machine's own
        assert found.parent.name == "cli-plugins"
        return
    with pytest.raises(Unavailable, match="no Docker Compose here"):
        Compose.of("compose.yaml")
