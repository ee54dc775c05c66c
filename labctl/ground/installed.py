"""This labctl as it is installed: its version, and what else on the machine has the same name."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "labctl-tcp"
"""What to install: another project's distribution has the name of the package and the command."""
ENTRY = "labctl.cli.commands"
"""The module that every script of ours names, whoever made it: pip, pipx, uv."""
SCRIPT_BYTES = 4096


def version() -> str:
    """The version of the distribution. A guest has the package alone, which has none."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def namesakes() -> list[str]:
    """Other distributions beside this one whose package or command is called labctl, too: one of
    them overwrites the other's files."""
    owners = set(metadata.packages_distributions().get("labctl", ()))
    for script in metadata.entry_points(group="console_scripts", name="labctl"):
        owners.add(script.dist.name if script.dist else "")
    return sorted(owners - {DISTRIBUTION, ""})


def stranger() -> Path | None:
    """The program that a shell starts for `labctl`, if it is another project's."""
    found = shutil.which("labctl")
    if not found:
        return None
    with Path(found).open("rb") as file:
        return None if ENTRY.encode() in file.read(SCRIPT_BYTES) else Path(found)
