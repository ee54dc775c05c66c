"""How this labctl was called, for messages that say what to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def see_all_tools() -> None:
    """Adds the administrator's programs to the PATH, such as nft(8): on Debian other users do not
    have them there."""
    if path := os.environ.get("PATH"):
        more = [folder for folder in ("/usr/sbin", "/sbin") if folder not in path.split(":")]
        os.environ["PATH"] = ":".join([path, *more])


def command() -> str:
    """The words that call this very labctl from the current folder, for a shell: its name if the
    PATH leads to it, else its path."""
    script = Path(sys.argv[0])
    if script.name != "labctl":  # python -m labctl, or a program that uses labctl
        script = Path(sys.executable).with_name("labctl")
    if not script.is_file():
        return shlex.join([sys.executable, "-m", "labctl"])
    found = shutil.which("labctl")
    if found and Path(found).samefile(script):
        return "labctl"
    here = Path.cwd()
    path = here / script
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
