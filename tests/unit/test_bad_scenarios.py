"""Bad scenarios: every mistake of a file at once, each with its line, and nothing is started.

data/bad/NAME.yaml is a bad scenario, data/bad/NAME.txt what labctl says of it.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from labctl.cli.commands import main
from tests.golden import agrees
from tests.played import Labctl

BAD = Path(__file__).parent / "data" / "bad"
NAMES = sorted(file.stem for file in BAD.glob("*.yaml"))
WORDED_BY_LIBYAML = {"colon", "control_character", "indentation", "unclosed", "unknown_alias"}


@pytest.fixture
def labctl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Labctl:
    """Runs a command: its status, stdout and stderr. It must leave nothing behind."""
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))

    def run(*arguments: str) -> tuple[int, str, str]:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main(list(arguments), prog_name="labctl")
        out, err = capsys.readouterr()
        assert sorted(tmp_path.rglob("*")) == before
        return int(ended.value.code or 0), out, err

    return run


def test_there_are_enough() -> None:
    assert len(NAMES) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_is_told(name: str, labctl: Labctl, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in WORDED_BY_LIBYAML and not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML is without libyaml, whose words these are")
    monkeypatch.chdir(BAD)
    status, out, err = labctl("run", f"{name}.yaml", "--backend", "netns")
    assert (status, out) == (2, "")
    assert agrees(BAD / f"{name}.txt", err)
    assert labctl("validate", f"{name}.yaml") == (2, "", err)
    lines = (BAD / f"{name}.yaml").read_bytes().count(b"\n")
    for message in err.splitlines():
        found = re.fullmatch(rf"{name}\.yaml:(\d+): \S.*[^.\s]", message)
        assert found and 1 <= int(found.group(1)) <= max(lines, 1)


def test_the_mistakes_of_several_files_are_told_together(
    labctl: Labctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BAD)
    status, out, err = labctl("validate", "two_verbs.yaml", "tabs.yaml", "one_host.yaml")
    assert (status, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "one_host.yaml", "tabs.yaml", "two_verbs.yaml"
    ]  # fmt: skip


def test_as_a_program(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "labctl", "run", "unknown_names.yaml", "--backend", "netns"]
    done = subprocess.run(
        command, cwd=BAD, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (BAD / "unknown_names.txt").read_text()
    assert not list(tmp_path.iterdir())


# Files that are too large, or of a shape that is better made than stored


def deep(opening: str, size: int) -> bytes:
    return ("title: deep\nsteps: " + opening * (size // len(opening))).encode()


GENERATED = {
    "10 MB of brackets": (deep("[", 10_000_000), 1, "the file is larger than 1000 kB"),
    "10 MB of lines": (b"# \n" * 3_400_000, 1, "the file is larger than 1000 kB"),
    "brackets": (deep("[", 990_000), 2, "nested deeper than 40 levels"),
    "braces": (deep("{a: ", 990_000), 2, "nested deeper than 40 levels"),
    "keys that are lists": (deep("[? ", 990_000), 2, "nested deeper than 40 levels"),
    "dashes": (b"steps:\n" + b"- " * 490_000, 2, "nested deeper than 40 levels"),
    "indentation": (
        b"title: deep\n" + b"".join(b" " * n + b"a:\n" for n in range(1400)),
        42,
        "nested deeper than 40 levels",
    ),
    "41 levels": (deep("[", 40) + b"]" * 40, 2, "nested deeper than 40 levels"),
    "a null byte": (b"title: null\nabout: \0\n", 2, "no YAML: control characters are not allowed"),
    "UTF-16": (
        "title: wide\n".encode("utf-16"),
        1,
        "byte 0xff is not UTF-8; save the file as UTF-8",
    ),
    "a cut character": ("title: a\nabout: é".encode()[:-1], 2, "byte 0xc3 is not UTF-8"),
    "nothing but a mark": (b"\xef\xbb\xbf", 1, "a scenario is a mapping with title, hosts"),
    "many digits": (
        b"title: many\nhosts: {server: {addresses: " + b"9" * 5000 + b"}, client: {}}\nsteps: []\n",
        2,
        "is no int that can be used here",
    ),
    "many hex digits": (
        b"title: 0x" + b"f" * 50_000 + b"\nhosts: {server: {}, client: {}}\nsteps: []\n",
        1,
        "is no int that can be used here",
    ),
    "params that double": (
        b"title: ${p30}\nhosts: {server: {}, client: {}}\nsteps: []\nparams:\n  p0: lol\n"
        + b"".join(b"  p%d: ${p%d}${p%d}\n" % (n, n - 1, n - 1) for n in range(1, 31)),
        22,
        "params multiply this file beyond 1000 kB",
    ),
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated(
    name: str, labctl: Labctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, line, message = GENERATED[name]
    (tmp_path / "made.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    status, out, err = labctl("run", "made.yaml", "--backend", "netns")
    assert (status, out) == (2, "")
    assert err.startswith(f"made.yaml:{line}: ")
    assert message in err
    assert len(err) < 1000


# Files that can't be read


def test_a_file_that_is_not_there(labctl: Labctl, tmp_path: Path) -> None:
    for path in ("/nowhere/at/all.yaml", "nowhere.yaml", "**", "[", "", str(tmp_path)):
        status, out, err = labctl("run", path, "--backend", "netns")
        assert (status, out) == (2, "")
        assert err.startswith(f"labctl: {path}: no ")
        assert err.count("\n") == 1


def test_a_name_that_is_too_long(labctl: Labctl) -> None:
    status, out, err = labctl("validate", "x" * 5000)
    assert (status, out) == (2, "")
    assert err.endswith("File name too long\n")


def test_a_file_that_can_not_be_opened(labctl: Labctl, tmp_path: Path) -> None:
    file = tmp_path / "socket.yaml"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(file))
    message = f"labctl: {file}: No such device or address\n"
    assert labctl("validate", str(file)) == (2, "", message)
    assert labctl("show", str(file)) == (2, "", message)


@pytest.mark.parametrize("command", ["validate", "show", "grade"])
def test_a_device_is_not_read(command: str, labctl: Labctl) -> None:
    """Some never end."""
    status, out, err = labctl(command, "/dev/zero")
    assert (status, out) == (2, "")
    assert err == "labctl: /dev/zero: a device; a plain file is wanted here\n"


def test_a_name_that_is_nearly_right(labctl: Labctl) -> None:
    status, out, err = labctl("validate", "fin_wiat_2")
    assert (status, out) == (2, "")
    assert err == (
        "labctl: fin_wiat_2: no such file, and no shipped scenario; did you mean 'fin_wait_2'? see "
        "`labctl list` for the shipped ones\n"
    )


def test_a_param_that_is_wrong_in_many_places(labctl: Labctl) -> None:
    status, _, err = labctl("validate", "restart_time_wait")
    assert (status, err) == (0, "")
    status, _, err = labctl("run", "restart_time_wait", "--set", "port=80x", "--set", "ready=x")
    assert (status, err.count("\n")) == (2, 1)
    assert "yaml:40: --set port=80x: 'server:80x' is no address; " in err


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["fin_timeout"], "--set fin_timeout: no NAME=VALUE"),
        (["=3"], "--set =3: no NAME=VALUE"),
        (["fin_timoeut=3"], "--set fin_timoeut: unknown param 'fin_timoeut'; allowed: fin_timeout"),
    ],
)
def test_params_that_are_none(
    labctl: Labctl, tmp_path: Path, sets: list[str], message: str
) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(
        "title: Good\nparams: {fin_timeout: 5}\nhosts: {server: {}, client: {}}\nsteps: []\n"
    )
    status, out, err = labctl("run", str(file), "--backend", "netns", "--set", *sets)
    assert (status, out) == (2, "")
    assert message in err
