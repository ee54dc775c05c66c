"""Every command that a help or a page shows is run as it is written, as far as one machine can."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.cli.commands import main
from tests.unit.test_docs import COMMANDS, PAGES, blocks

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.ci]

HELP = re.compile(r"^ +(labctl .+)$", re.MULTILINE)
NOT_HERE = {
    r"--container|--compose|--engine|^docker |images build|--backend docker|DOCKER_HOST": (
        "they need an engine, with somebody's containers"
    ),
    r"--kernel|--virtual-time|^labctl kernels": "guests: test_guest_kernels.py",
    r"^labctl (run|matrix) (scenarios|servers|half_close)\b": "test_lessons.py and `make servers`",
    r"^labctl run (clients|proxies|passes_half_close)\b": "test_lessons.py and `make clients`",
    r"^labctl run peers ": "test_peers.py",
    r"^make |^uvx |^pipx |^apt-get |python -m pytest|tests/engine.py": "what is here already",
    r"^git bisect ": "test_bisect.py",
    r"^while |^strace ": "they record other programs, until somebody ends them",
}
"""What is not run here, and why. Each stands for at least one line."""
INSTEAD = {r"--pid 4711": f"--pid {os.getpid()}", r"^(labctl watch (?!.*--for).*)": r"\1 --for 1s"}
"""What there is here, and an end for what ends by Ctrl-C."""
WORKED = {0, 3}
"""On a busy machine something may be unknown: what lessons show is no matter here."""
CLAIMS = """\
title: What every run of these examples bears
hosts: {here: {}}
steps: []
expect:
  - segments: {flags: SYN, at_least: 0}
"""


def of_pages() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        if page.name == "tutorial.md":
            continue  # test_tutorial.py runs it
        fences = [block.text.replace("\\\n", " ") for block in blocks(page) if block.info == "sh"]
        if fences:
            yield page.name, [line for text in fences for line in text.splitlines() if line]


def of_helps() -> Iterator[tuple[str, list[str]]]:
    for name, command in {"labctl": main, **COMMANDS}.items():
        yield name, HELP.findall(command.help or "")


def not_here(line: str) -> str | None:
    """The pattern that says why a line is not run."""
    return next((pattern for pattern in NOT_HERE if re.search(pattern, line)), None)


SHOWN = {**dict(of_helps()), **dict(of_pages())}
RUN = {where: [x for x in lines if not not_here(x)] for where, lines in SHOWN.items()}


def test_every_reason_not_to_run_a_line_has_one() -> None:
    met = {not_here(line) for lines in SHOWN.values() for line in lines}
    assert met - {None} == set(NOT_HERE)
    assert all(lines for lines in SHOWN.values())
    assert sum(map(len, RUN.values())) > 40


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files as examples name them, and with a run that is the newest."""
    folder = tmp_path_factory.mktemp("stage")
    status("labctl run fin_wait_2", folder)
    (run,) = (folder / "state" / "labctl" / "runs").iterdir()
    for name, host in {"a.pcap": "server", "a.pcapng": "server", "b.pcap": "client"}.items():
        shutil.copy(run / f"{host}.pcap", folder / name)
    capture = (folder / "a.pcap").read_bytes()
    (folder / "a.pcap.gz").write_bytes(gzip.compress(capture))
    seconds, fraction = struct.unpack_from("<II", capture, 24)
    moment = f"{seconds}.{fraction:09}"
    (folder / "ss.txt").write_text(f"{moment}\nState Recv-Q Send-Q Local Peer\n")
    (folder / "trace.txt").write_text(f"7 {moment[:-3]} socket(AF_INET, SOCK_STREAM, 0) = 3\n")
    (folder / "claims.yaml").write_text(CLAIMS)
    return folder


def status(line: str, folder: Path) -> int:
    """What a shell ends with that gets this line, in an environment of its own, with no engine."""
    for text, other in INSTEAD.items():
        line = re.sub(text, other, line)
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", line],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_RUNTIME_DIR": str(folder),
            "DOCKER_HOST": "unix:///nonexistent/docker.sock",
        },
    )  # fmt: skip
    print(f"$ {line}", done.stdout[-2000:], done.stderr[-2000:], sep="\n")  # if the test fails
    return done.returncode


@pytest.mark.parametrize("where", [where for where, lines in RUN.items() if lines])
def test_the_lines_of(where: str, stage: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(stage, folder, symlinks=True)
    try:
        for line in RUN[where]:
            assert status(line, folder) in WORKED, line
    finally:
        assert status("labctl down", folder) == 0
