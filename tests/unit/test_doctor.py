"""What `labctl doctor` says on macOS, as far as another platform can play it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import docker.errors  # before another platform is played, whose own modules it would look for
import pytest

from labctl.backends.netns import backend as netns
from labctl.run.doctor import MACOS_SOCKETS, Check, examine
from labctl.run.guests import root
from tests import refusing

pytestmark = pytest.mark.usefixtures("qemu_is_asked")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of somebody with a Mac: no engine that answers, and none of Linux's tools."""
    assert issubclass(docker.errors.NotFound, Exception)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    netns.unavailable.cache_clear()
    yield tmp_path
    netns.unavailable.cache_clear()


def checks() -> dict[str, Check]:
    return {check.name: check for check in examine()}


@pytest.mark.parametrize("name", MACOS_SOCKETS)
def test_a_socket_that_is_there_is_named(home: Path, name: str) -> None:
    socket = home / MACOS_SOCKETS[name]
    socket.parent.mkdir(parents=True)
    socket.touch()
    found = checks()["docker"]
    assert not found.ok
    assert found.found == f"no engine answers at unix://{home}/none.sock"
    assert found.hint.startswith(f"export DOCKER_HOST=unix://{socket} ({name}; start it")


def test_the_one_that_does_not_answer_is_not_offered_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("colima", "OrbStack"):
        socket = home / MACOS_SOCKETS[name]
        socket.parent.mkdir(parents=True)
        socket.touch()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/{MACOS_SOCKETS['colima']}")
    assert "OrbStack" in checks()["docker"].hint
    assert "colima" not in checks()["docker"].hint


def test_no_socket_at_all(home: Path) -> None:
    assert checks()["docker"].hint.startswith("start Docker Desktop, colima or OrbStack")


def test_only_an_engine_can_mend_what_is_linux(home: Path) -> None:
    found = checks()
    lacking = {name for name, check in found.items() if not check.ok} - {"docker", "name"}
    assert lacking == {
        "netns",
        "uids",
        "nft",
        "nat",
        "netem",
        "tracing",
        "calls",
        "mmdebstrap",
        "kernels",
    }
    for name in lacking - {"kernels"}:
        assert found[name].hint == "needs Linux: use --backend docker, whose engine has one"
    assert found["netns"].found == "namespaces need Linux"
    assert found["kernels"].hint.startswith("start a Docker engine")


def test_guests_at_an_engine_have_a_root_made_on_linux(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a kernel that was fetched there; without them it says how to get both."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    version = {"Version": "28", "ApiVersion": "1.41", "Arch": "arm64"}
    with refusing.engine(home / "none.sock", version=version):
        kernels = checks()["kernels"]
        assert kernels.found.endswith("is not there, a root for guests, and tools of Linux make it")
        assert str(home / "cache" / "labctl" / "kernels") in kernels.hint
        root.place("bookworm").mkdir(parents=True)
        (home / "cache" / "labctl" / "kernels" / "images" / "6.6.6").mkdir(parents=True)
        kernels = checks()["kernels"]
    assert (kernels.ok, kernels.found) == (True, "QEMU in containers; 6.6.6")
