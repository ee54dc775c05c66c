"""Values as a file writes them: numbers that know their digits, when two values are the same, and
how labels show a value.

To Python `1`, `1.0` and `True` are equal, and `6.20` is `6.2`. To the author of a scenario they
differ: `6.20` may be the version of a kernel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self
from unicodedata import is_normalized

import yaml
from yaml.nodes import ScalarNode, SequenceNode


class Int(int):
    """A whole number, and how it was written: `0x10`."""

    written: str

    def __new__(cls, value: int, written: str = "") -> Self:
        number = super().__new__(cls, value)
        number.written = written or str(value)
        return number


class Float(float):
    """A number, and how it was written: `6.20`."""

    written: str

    def __new__(cls, value: float, written: str = "") -> Self:
        number = super().__new__(cls, value)
        number.written = written or str(value)
        return number


KINDS = (bool, int, float, str, list, dict)
"""The order matters: to Python a truth value is an `int`."""


def count(number: int, noun: str) -> str:
    """`1 byte`, `17 bytes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def same(one: Any, other: Any) -> bool:
    """Whether two values of a file are equal in value and type, all the way down."""
    kind = _kind(one)
    if kind is not _kind(other):
        return False
    if kind is list:
        return len(one) == len(other) and all(map(same, one, other))
    if kind is dict:
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def _kind(value: Any) -> type | None:
    return next((kind for kind in KINDS if isinstance(value, kind)), None)


def words(value: Any) -> str:
    """A value as labels and messages show it: as YAML writes it between brackets. So values that
    differ never look the same."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{words(key)}: {words(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(words, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        seen = value.isprintable() and is_normalized("NFC", value)  # else another may look like it
        return value if seen and _read(value) == "str" else json.dumps(value, ensure_ascii=not seen)
    text = getattr(value, "written", "")
    return text if _read(text) == ("int" if isinstance(value, int) else "float") else str(value)


def variant_words(variant: Mapping[str, Any]) -> str:
    """`old plain, bind EADDRINUSE`: the values of a variant, which distinguish it from others."""
    return ", ".join(f"{name} {words(value)}" for name, value in variant.items())


@lru_cache(1 << 12)
def _read(text: str) -> str | None:
    """What YAML takes a text for, if it stands between brackets without quotation marks; None if it
    is not a single value."""
    if any(mark in text for mark in "[]{}"):
        return None
    try:
        node = yaml.compose(f"[{text}]", yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    items = node.value if isinstance(node, SequenceNode) else []
    item = items[0] if len(items) == 1 else None
    if not isinstance(item, ScalarNode) or (item.value, item.style) != (text, None):
        return None
    kind = item.tag.rpartition(":")[2]
    typed = kind in ("int", "float", "null") or text.lower() in ("true", "false")
    return kind if typed else "str"
