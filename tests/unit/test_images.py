"""Images are named after what they are made of, and their context is the same bytes everywhere."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import requests
from docker.errors import ImageNotFound

from labctl.backends.docker import images
from labctl.ground import resources
from labctl.ground.errors import LabError, Unavailable

if TYPE_CHECKING:
    from docker.api.client import APIClient


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else's images are built for minutes in front of ours."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv(images.PUBLISHED, raising=False)


SOURCES = {"install.sh": b"one", "host/Dockerfile": b"two", "peer/peer.py": b"three"}


def test_tags_say_what_they_are() -> None:
    found = images.tags("debian:12", SOURCES)
    assert found.host.startswith("labctl/host:debian-12-")
    assert found.peer.startswith("labctl/peer:debian-12-")
    assert len(found.host.rpartition("-")[2]) == 12
    assert found.host.rpartition("-")[2] == found.peer.rpartition("-")[2]


@pytest.mark.parametrize(
    "changed",
    [
        SOURCES | {"install.sh": b"One"},
        SOURCES | {"more": b""},
        {**SOURCES, "install.sh": b"two", "host/Dockerfile": b"one"},
        {name: content for name, content in SOURCES.items() if name != "install.sh"},
        {"install.sh": b"onetwo", "host/Dockerfile": b"", "peer/peer.py": b"three"},
    ],
    ids=["edited", "added", "exchanged", "removed", "moved across files"],
)
def test_the_key_changes_with_the_sources(changed: dict[str, bytes]) -> None:
    assert images.tags("debian:12", changed) != images.tags("debian:12", SOURCES)


def test_the_key_changes_with_the_system_but_not_with_the_order() -> None:
    turned = dict(reversed(SOURCES.items()))
    assert images.tags("debian:12", turned) == images.tags("debian:12", SOURCES)
    assert images.tags("debian:13", SOURCES) != images.tags("debian:12", SOURCES)
    # The same slug, and another image.
    assert images.tags("debian/12", SOURCES) != images.tags("debian:12", SOURCES)


def test_any_name_of_an_image_makes_a_valid_tag() -> None:
    found = images.tags("registry.example:5000/team/os@sha256:" + "0" * 64, SOURCES)
    repository, _, tag = found.host.partition(":")
    assert repository == "labctl/host"
    assert len(tag) <= 128
    assert all(c.isalnum() or c in "._-" for c in tag)


def test_what_python_leaves_in_the_folder_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(resources.images(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = images.read_sources(folder)
    cache = folder / "peer" / "__pycache__"
    cache.mkdir()
    (cache / "peer.cpython-311.pyc").write_bytes(os.urandom(100))
    assert images.read_sources(folder) == before == images.read_sources(resources.images())
    assert {"install.sh", "host/Dockerfile", "host/agent.py", "peer/Dockerfile"} <= before.keys()


def test_the_context_is_the_same_bytes_whenever_it_is_made() -> None:
    first = images.context(SOURCES)
    assert images.context(dict(reversed(SOURCES.items()))) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        found = {entry.name: entry for entry in tar}
        assert found.keys() == SOURCES.keys()
        assert {(entry.mtime, entry.uid, entry.mode) for entry in found.values()} == {(0, 0, 0o644)}
        content = tar.extractfile("install.sh")
        assert content is not None
        assert content.read() == b"one"


# Bases


class Engine:
    """An engine that has these images alone, reaches no registry, and takes what is imported. The
    registry of `published` answers, if it has any."""

    published: tuple[str, ...] = ()

    def __init__(self, *local: str) -> None:
        self.local = local
        self.built: list[str] = []
        self.imported: list[tuple[bytes, str, str]] = []
        self.says: list[dict[str, str]] = []
        self.heard = False

    def images(self) -> list[dict[str, Any]]:
        return [{"Id": name, "RepoTags": [name]} for name in self.local]

    def inspect_image(self, name: str) -> dict[str, Any]:
        if name not in self.local:
            answer = requests.Response()
            answer.status_code = 404
            raise ImageNotFound("no such image", answer)
        return {"Id": name}

    def pull(self, name: str, **_: Any) -> Iterator[dict[str, Any]]:
        yield {"status": "Pulling"}
        if name in self.published:
            self.local += (name,)
        else:
            yield {"error": "manifest unknown" if self.published else "no route to host"}

    def tag(self, image: str, repository: str, tag: str) -> None:
        assert image in self.local
        self.local += (f"{repository}:{tag}",)

    def import_image_from_data(
        self, data: Iterator[bytes], repository: str, tag: str, **_: Any
    ) -> None:
        self.imported.append((b"".join(data), repository, tag))

    def build(self, tag: str, **_: Any) -> Iterator[dict[str, Any]]:
        self.built.append(tag)
        yield {"stream": "Step 5/8 : RUN sh install.sh\n"}
        yield from self.says
        self.heard = True


def ensure(
    system: str, programs: Path, monkeypatch: pytest.MonkeyPatch, mmdebstrap: str = ""
) -> Engine:
    """Has the images built on an engine like that, with this shell script for mmdebstrap(1)."""
    monkeypatch.setenv("PATH", str(programs))
    if mmdebstrap:
        program = programs / "mmdebstrap"
        program.write_text(f"#!/bin/sh\n{mmdebstrap}\n")
        program.chmod(0o755)
    found = Engine()
    images.ensure(cast("APIClient", found), system, lambda text: None)
    return found


@pytest.mark.parametrize(
    ("system", "pulled", "mend"),
    [
        ("debian:12", "debian:12-slim", "; install the package mmdebstrap; or "),
        (
            "debian:bookworm-slim",
            "debian:bookworm-slim",
            "; install the package mmdebstrap; or ",
        ),
        ("debian:99", "debian:99-slim", "; without a registry, take debian:11, debian:12, "),
        ("debian", "debian:latest", "; without a registry, take debian:11, debian:12, "),
        ("alpine:3.20", "alpine:3.20", "; without a registry, take debian:11, debian:12, "),
        ("fedora", "fedora:latest", "; without a registry, take debian:11, debian:12, "),
    ],
)
def test_a_base_that_can_not_be_had(
    system: str, pulled: str, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable) as caught:
        ensure(system, tmp_path, monkeypatch)
    said = str(caught.value)
    assert said.startswith(f"no base image for '{system}': {pulled} can't be pulled (no route to h")
    assert mend in said
    assert said.endswith(f"docker load < FILE (of {pulled})")


@pytest.mark.parametrize("system", ["debian:13", "debian:trixie", "debian:13-slim"])
def test_a_debian_is_made_of_its_packages(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ensure(system, tmp_path, monkeypatch, 'echo "$@"')
    ((archive, repository, tag),) = found.imported
    assert repository == "labctl/base"
    assert re.fullmatch(system.replace(":", "-").removesuffix("-slim") + r"-\w{6}", tag)
    assert archive.endswith(b" trixie -\n")
    assert b"python3,iproute2,nftables,procps,tcpdump" in archive


def test_what_mmdebstrap_complained_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'echo "E: no mirror." >&2; echo "E: mmdebstrap failed to run" >&2; exit 25'
    with pytest.raises(
        Unavailable, match=r"did not build Debian sid: no mirror; see that"
    ) as caught:
        ensure("debian:sid", tmp_path, monkeypatch, script)
    assert "; or load it on this engine: docker load < FILE (of debian:sid" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", ""),
        ("\x1b[91minstall.sh: no apk\n\x1b[0m\n", " (install.sh: no apk)"),
        ("one\nE: no package\n", " (E: no package)"),
    ],
)
def test_an_image_that_can_not_be_built_says_why(said: str, reason: str) -> None:
    engine = Engine("alpine:3.20")
    engine.says = [
        {"stream": said},
        {"stream": "Removing intermediate container 1\n"},
        {"error": "returned 1"},
    ]
    with pytest.raises(LabError, match="can't be built") as caught:
        images.ensure(cast("APIClient", engine), "alpine:3.20", lambda text: None)
    assert f"can't be built: returned 1{reason}; take a base" in str(caught.value)
    assert engine.heard, "what is not read to its end leaves a connection open"


# What is installed


TOOLS = ("python3", "ip", "ss", "sysctl", "tc", "nft", "tcpdump")


def install(folder: Path, *present: str) -> tuple[int, list[str]]:
    """Runs install.sh where only these programs are, which do nothing but be called, and managers
    bring what is asked for; returns its status, and what it called and said."""
    programs, log = folder / "bin", folder / "log"
    programs.mkdir()
    log.touch()
    (programs / "sort").symlink_to(shutil.which("sort") or "")
    script = f'#!/bin/sh\necho "${{0##*/}}" "$@" >> {log}\n'
    brings = f"for tool in {' '.join(TOOLS)}; do {shutil.which('cp')} $0 {programs}/$tool; done\n"
    for name in ("rm", *present):
        program = programs / name
        program.write_text(script if name in ("rm", *TOOLS) else script + brings)
        program.chmod(0o755)
    done = subprocess.run(
        [shutil.which("sh") or "", str(resources.images() / "install.sh"), *TOOLS],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [line for line in log.read_text().splitlines() if not line.startswith("python3")]
    return done.returncode, calls + done.stderr.splitlines()


@pytest.mark.parametrize(
    ("manager", "call"),
    [
        ("apt-get", "apt-get install -y --no-install-recommends iproute2 nftables procps"),
        ("apk", "apk add --no-cache iproute2 nftables procps"),
        ("dnf", "dnf install -y iproute iproute-tc nftables procps-ng"),
        ("microdnf", "microdnf install -y iproute iproute-tc nftables procps-ng"),
        ("yum", "yum install -y iproute iproute-tc nftables procps-ng"),
        ("zypper", "zypper --non-interactive install --no-recommends iproute2 nftables procps"),
    ],
)
def test_install_uses_the_manager_that_is_there(tmp_path: Path, manager: str, call: str) -> None:
    status, said = install(tmp_path, manager)
    assert status == 0, said
    assert f"{call} python3 tcpdump" in said


def test_install_does_nothing_where_all_of_it_is_there(tmp_path: Path) -> None:
    assert install(tmp_path, *TOOLS, "apt-get") == (0, [])


def test_install_takes_one_manager_of_several(tmp_path: Path) -> None:
    status, said = install(tmp_path, "yum", "dnf")
    assert status == 0, said
    assert [line.split()[:2] for line in said] == [["dnf", "install"], ["dnf", "clean"]]


def test_install_fails_where_nothing_can_install(tmp_path: Path) -> None:
    status, said = install(tmp_path, "python3")
    assert status == 1
    assert "no apt-get, apk, dnf, microdnf, yum or zypper" in said[-1]


# Published images


WHERE = "registry.example/team/labctl"


@pytest.mark.parametrize(
    ("published", "why"),
    [("", "no route to host"), ("debian-12-0123456789ab", "manifest unknown")],
    ids=["does not answer", "has another version"],
)
def test_what_is_not_published_is_built(
    published: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says why."""
    monkeypatch.setenv(images.PUBLISHED, WHERE)
    engine, said = Engine("debian:12-slim"), list[str]()
    if published:
        engine.published = f"{WHERE}/host:{published}", f"{WHERE}/peer:{published}"
    wanted = images.ensure(cast("APIClient", engine), "debian:12", said.append)
    assert engine.built == [wanted.host, wanted.peer]
    asked = wanted.host.replace("labctl", WHERE)
    assert said[:2] == [
        f"pulling {asked}",
        f"{asked} can't be pulled ({why}): building it here",
    ]


def test_what_is_published_is_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no base, and has labctl's own names then."""
    monkeypatch.setenv(images.PUBLISHED, f"{WHERE}/")
    wanted = images.tags("debian:12", images.read_sources(resources.images()))
    engine, said = Engine(), list[str]()
    engine.published = tuple(t.replace("labctl", WHERE) for t in (wanted.host, wanted.peer))
    assert images.ensure(cast("APIClient", engine), "debian:12", said.append) == wanted
    assert engine.built == []
    assert {wanted.host, wanted.peer} <= set(engine.local)
    assert said == [f"pulling {name}" for name in engine.published]


def test_nothing_is_asked_of_a_registry_that_nobody_named() -> None:
    engine, said = Engine("debian:12-slim"), list[str]()
    images.ensure(cast("APIClient", engine), "debian:12", said.append)
    assert [line.split(" ")[0] for line in said] == ["building", "building"]
