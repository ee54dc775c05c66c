"""How this labctl was called, for messages that tell what to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def see_all_tools() -> None:
    """Has the administrator's programs found, such as nft(8): on Debian the PATH of others has them
    not."""
    if path := os.environ.get("PATH"):
        more = [folder for folder in ("/usr/sbin", "/sbin") if folder not in path.split(":")]
        os.environ["PATH"] = ":".join([path, *more])


def command() -> str:
    """What calls this very labctl from the folder that we are in, as a shell takes it: its name
    where the PATH leads to it, else its path."""
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
