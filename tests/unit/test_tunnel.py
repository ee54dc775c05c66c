"""An engine's socket through ssh, with an ssh of our own."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from labctl.backends.docker.tunnel import through
from labctl.ground.errors import Unavailable

SSH = f"""\
#!{sys.executable} -IS
import socket, sys, threading
words = sys.argv[1:]
local, _, remote = words[words.index("-L") + 1].partition(":")
here = socket.socket(socket.AF_UNIX)
here.bind(local)
here.listen()
def serve():
    while True:
        found, _ = here.accept()
        found.sendall(" ".join([remote, *words[words.index("-p"):][:2], words[-2]]).encode())
        found.close()
threading.Thread(target=serve, daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"""
REFUSES = "#!/bin/sh\necho 'far: Permission denied (publickey).' >&2\nexit 255\n"


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def provide(text: str) -> None:
        (tmp_path / "ssh").write_text(text)
        (tmp_path / "ssh").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return provide


def said(url: str) -> str:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(url.removeprefix("unix://"))
        return end.recv(1000).decode()


def test_one_tunnel_for_all_connections(ssh: Any) -> None:
    ssh(SSH)
    url = through("ssh://me@far:2222")
    assert through("ssh://me@far:2222") == url
    assert [said(url), said(url)] == ["/var/run/docker.sock -p 2222 me@far"] * 2
    other = through("ssh://far:22/run/user/1000/docker.sock")
    assert said(other) == "/run/user/1000/docker.sock -p 22 far"


def test_why_there_is_no_tunnel(ssh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh(REFUSES)
    with pytest.raises(Unavailable, match=r"at ssh://far: far: Permission denied") as caught:
        through("ssh://far")
    assert caught.value.hint == (
        "`ssh far` must work without a password, and its user must be allowed to use Docker"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="ssh can't be run: No such file"):
        through("ssh://far")
