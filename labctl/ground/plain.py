"""Text that is safe for a terminal, a page or a file.

Names, values and outputs may hold anything: escape sequences, bytes that are no text, marks that
turn a line around. This shows characters that are not printable as Python writes them: `\\x1b`,
`\\u202e`. Each way out calls it once more for everything that it writes, so it must not change
plain text.
"""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """One line; escapes everything that commands a terminal, breaks the line, hides, or can't be
    encoded."""
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
