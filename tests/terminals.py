"""What commands write to a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys


def on_a_terminal(columns: int, *arguments: str, **variables: str) -> str:
    """What a command writes to a terminal of so many columns."""
    controller, terminal = pty.openpty()
    keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**keep, "TERM": "xterm-256color", "COLUMNS": str(columns), **variables}
    command = [sys.executable, "-m", "labctl", *arguments]
    with subprocess.Popen(command, env=environment, stdout=terminal, stderr=terminal):
        os.close(terminal)
        output = b""
        try:
            while data := os.read(controller, 65536):
                output += data
        except OSError:  # EIO: the other end is closed
            pass
    os.close(controller)
    return output.decode()
