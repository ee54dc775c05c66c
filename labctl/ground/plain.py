"""Text as it may leave for a terminal, a page or a file.

Names, values and outputs may hold anything: escape sequences, bytes that are no text, marks that
turn a line around. What is not printable is shown as Python writes it: `\\x1b`, `\\u202e`. Each
way out calls this once more for all it writes, so it has to leave plain text as it is.
"""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """One line: what commands a terminal, breaks the line, hides or can't be encoded is escaped."""
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def plain_lines(text: str) -> str:
    """The same for text of several lines, whose tabs become blanks."""
    if text.isprintable():
        return text
    return "\n".join(plain(line.expandtabs()) for line in text.split("\n"))


def _shown(letter: str) -> str:
    if letter.isprintable() or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def shown(value: object) -> str:
    """A value as a message quotes it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
