"""What guests are made of: their initramfs, and their root."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_IFDIR, S_IFREG

import pytest

from labctl.backends import debian
from labctl.ground import resources
from labctl.run.guests import initramfs, root

# --- The initramfs --------------------------------------------------------------------------------


def test_modules_come_after_what_they_need() -> None:
    needs = {"bridge": ["stp", "llc"], "stp": ["llc"], "llc": [], "veth": []}
    order = initramfs.in_order(["bridge", "veth"], needs.__getitem__)
    assert order == ["llc", "stp", "bridge", "veth"]


def test_a_module_says_what_it_needs() -> None:
    section = b"\0license=GPL\0depends=nf_conntrack,nf-tables\0intree=Y\0"
    assert initramfs.dependencies(section) == ["nf_conntrack", "nf_tables"]
    assert initramfs.dependencies(b"\0depends=\0intree=Y\0") == []


def test_a_module_loses_its_signature_and_nothing_else() -> None:
    signature = b"PKCS#7"
    info = bytes([0, 0, 2, 0, 0, 0, 0, 0]) + len(signature).to_bytes(4, "big")
    signed = b"ELF" + signature + info + initramfs.SIGNED
    assert initramfs.unsigned(signed) == b"ELF" == initramfs.unsigned(b"ELF")


def test_the_guest_finds_the_byte_code_of_its_program() -> None:
    ((path, code),) = initramfs.compiled({"labctl/ground/errors.py": b"x = 1"}).items()
    assert path.startswith("labctl/ground/__pycache__/errors.")
    assert int.from_bytes(code[4:8], "little") == 0b01  # PEP 552: a hash, that nobody checks


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    files = {"init": b"#!/bin/sh\n", "a/b/c": b"abc", "a/d": b""}
    path = tmp_path / "archive"
    with path.open("wb") as out:
        archive = initramfs.Archive(out)
        for folder in ("a", "a/b"):
            archive.add(folder, S_IFDIR | 0o755)
        for name, content in files.items():
            archive.add(name, S_IFREG | 0o755, content)
        archive.end()
    script = (
        f"cd {shlex.quote(str(tmp_path))} && mkdir out && cd out && cpio -id --quiet < ../archive"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 127:
        pytest.skip("no cpio here")
    assert done.stderr == ""
    found = {
        str(p.relative_to(tmp_path / "out")): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert found == files
    assert (tmp_path / "out" / "init").stat().st_mode & 0o111


def test_the_guests_program_is_in_it() -> None:
    names = set(initramfs.sources())
    assert {"labctl/run/guests/guest.py", "labctl/language/steps/faults.py"} <= names
    assert {f"images/host/{part}.py" for part in ("agent", "faults", "tracer")} <= names
    assert {f"images/peer/{part}.py" for part in ("calls", "peer")} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_a_root_leaves_out_what_no_lab_needs(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("./dev", "./dev/pts", "./usr/share/doc"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name in (
            "./bin/sh",
            "./usr/share/doc/sh/README",
            "./usr/lib/apt/apt",
            "./lib/systemd/systemd",
            "./usr/lib/libc",
        ):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("./bin/bash")
        link.type, link.linkname = tarfile.LNKTYPE, "./bin/sh"
        archive.addfile(link)
        link.name, link.linkname = "./bin/apt", "./usr/lib/apt/apt"
        archive.addfile(link)
    tar.seek(0)
    out = io.BytesIO()
    root.convert(tar, out, root.rooted)
    for kept in (b"dev\0", b"bin/sh\0", b"usr/lib/libc\0", b"/bin/sh", b"TRAILER!!!"):
        assert kept in out.getvalue()
    for left in (b"README", b"doc", b"pts", b"lib/apt", b"bin/apt", b"systemd"):
        assert left not in out.getvalue()


def test_a_python_beside_a_root_is_apart_from_its_own() -> None:
    libraries = "usr/lib/x86_64-linux-gnu"
    for name in (
        "usr", "usr/lib", libraries, f"{libraries}/libc.so.6", "usr/bin/python3.11",
        "usr/lib/python3.11/json/__init__.py",
    ):  # fmt: skip
        assert root.beside(name) == f"opt/{name}"
    for name in ("opt", "opt/site", "opt/site/yaml/_yaml.so"):
        assert root.beside(name) == name
    for name in (
        ".", "etc/passwd", "usr/bin/ss", "usr/bin/python3", "usr/lib/python3/dist-packages",
        f"{libraries}/libcrypto.so.3", "usr/share/doc",
    ):  # fmt: skip
        assert root.beside(name) is None


def test_an_initramfs_has_a_roots_parts_in_their_order(tmp_path: Path) -> None:
    parts = [tmp_path / "root", tmp_path / "python"]
    for part in parts:
        part.write_bytes(part.name.encode() * 4)
    (tmp_path / "modules").mkdir()
    initramfs.build(tmp_path / "initramfs", parts, tmp_path / "modules")
    content = (tmp_path / "initramfs").read_bytes()
    assert content.startswith(b"root" * 4 + b"python" * 4 + b"070701")
    assert b"labctl/run/guests/guest.py" in content


# --- The root -------------------------------------------------------------------------------------


def test_two_that_want_a_root_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Debian 11, whose Python is lent, and instead of an older root."""
    older = tmp_path / "labctl" / "kernels" / "roots" / "bullseye-older"
    older.mkdir(parents=True)
    made: list[tuple[str, str, bool]] = []
    waits = threading.Event()

    def make(part: root.Part, folder: Path, progress: object) -> None:
        assert waits.wait(10)
        made.append((part.suite, part.name, bool(part.wheels)))
        (folder / part.name).touch()

    def say(line: str) -> None:
        assert line == "waiting for another labctl that makes roots"
        waits.set()

    for variable in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    for tool in (debian.PACKAGE, "unshare", "newuidmap"):
        (tmp_path / tool).symlink_to(shutil.which("true") or "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: root.ensure("bullseye", say, make), range(2))
    assert made == [("bullseye", "root.cpio", False), ("bookworm", "python.cpio", True)]
    assert one == other == [root.place("bullseye") / name for name in ("root.cpio", "python.cpio")]
    assert all(path.exists() for path in one)
    assert not older.exists()


def test_the_guest_has_the_versions_that_this_labctl_runs_with() -> None:
    from importlib.metadata import version

    found = root.closure(root.DEPENDENCIES, root._requirements)
    assert f"pydantic=={version('pydantic')}" in found
    assert f"pydantic-core=={version('pydantic-core')}" in found


def test_the_guests_program_imports_nothing_else() -> None:
    """Started as in a guest, without what a distribution adds to its Python (sitecustomize)."""
    code = "import sys, labctl.run.guests.guest; print(*{m.partition('.')[0] for m in sys.modules})"
    path = f"{resources.PACKAGE.parent}:{sysconfig.get_path('platlib')}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = set(done.stdout.split()) - set(sys.stdlib_module_names) - {"labctl"}
    allowed = {text.partition("==")[0].replace("-", "_").lower() for text in
               root.closure(root.DEPENDENCIES, root._requirements)}  # fmt: skip
    assert {n for n in names if not n.startswith("_")} - allowed <= {"yaml", "cython_runtime"}
