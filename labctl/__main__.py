"""`labctl`, and `python -m labctl`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Imports the commands, and runs one. If they can't be imported, says why."""
    # Nobody else's plugin has a say in what is read, and to look for some takes time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from labctl.cli.commands import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    except (ImportError, MemoryError, OSError) as exc:
        sys.exit(_cannot_begin(f"{type(exc).__name__} {exc}".strip()))
    command()


def _cannot_begin(reason: str) -> int:
    print(f"labctl: can't begin: {reason}; see the limits of this shell (ulimit -a), or install "
          "labctl again", file=sys.stderr)  # fmt: skip
    return 4


if __name__ == "__main__":
    main()
