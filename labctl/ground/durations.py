"""Durations as they are written: `50ms`, `1.5s`, `2m`, or a number of seconds."""

from __future__ import annotations

import re
from typing import Any

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)?", re.ASCII)
SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
LONGEST = 7 * 86400.0


def seconds(value: Any) -> float | None:
    """The duration in seconds; None if it is no duration, or longer than LONGEST."""
    found = -1.0
    if isinstance(value, str) and (match := DURATION.fullmatch(value.strip())):
        found = float(match.group(1)) * SECONDS[match.group(2)]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    return found if 0 <= found <= LONGEST else None
