"""The lines of a channel: JSON objects with a `kind`.

Whoever wrote it, nothing is taken for a message that is none: `NoMessage` says what is wrong.
"""

from __future__ import annotations

import json
from typing import NoReturn

from labctl.backends import Message

QUOTED = 80


class NoMessage(ValueError):
    """What a program said, or what was written in its stead, is no message."""


def read(line: bytes) -> Message:
    """The message in a line: a JSON object with a `kind`. Raises NoMessage."""
    try:
        text = line.decode()
        message = json.loads(text, parse_constant=_refused)
        if "\\ud" in text.lower():  # half a character, perhaps: no file can hold that
            json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise NoMessage(f"{quoted(line)}: {exc}") from exc
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise NoMessage(f"{quoted(line)}: no object with a kind")
    return message


def moment(message: Message) -> float:
    """Takes out when something was. Raises NoMessage."""
    t = message.pop("t", None)
    if isinstance(t, bool) or not isinstance(t, int | float):
        raise NoMessage(f"no time: {quoted(message)}")
    return float(t)


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def quoted(what: object) -> str:
    """The head of what was said."""
    text = what.decode(errors="replace").rstrip("\n") if isinstance(what, bytes) else str(what)
    return repr(text if len(text) <= QUOTED else text[: QUOTED - 3] + "...")
