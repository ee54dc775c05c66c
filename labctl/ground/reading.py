"""Files that others may have written: read within bounds, and checked before they are used."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from labctl.ground.errors import UsageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_RECORD = 512_000_000
"""Bytes of a history or a capture: a usual machine has the memory for so many."""
MAX_RESULT = 64_000_000
"""Bytes of a result.json; it has a few lines for each claim."""
LARGEST = 2.0**64
"""No number in a record comes near it: no time, no count, no sequence number."""

MAX_DEPTH = 40
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"

WORDS = {
    "string_type": "a text is wanted",
    "float_type": "a number is wanted",
    "float_parsing": "a number is wanted",
    "int_type": "a whole number is wanted",
    "int_parsing": "a whole number is wanted",
    "int_from_float": "a whole number is wanted",
    "bool_type": "true or false is wanted",
    "bool_parsing": "true or false is wanted",
    "dict_type": "an object is wanted",
    "dataclass_type": "an object is wanted",
    "mapping_type": "an object is wanted",
    "tuple_type": "a list is wanted",
    "unexpected_keyword_argument": "no such key is known",
}
"""pydantic's kinds of errors, in our words."""

T = TypeVar("T")


class Checked:
    """In an Annotated type: a further condition for the value. `check` raises ValueError; `shape`
    is as much of it as JSON Schema can say."""

    def __init__(self, check: Callable[[Any], Any], **shape: Any) -> None:
        self._check, self._shape = check, shape

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return {**handler(source), **self._shape}


def open_file(path: Path, most: float = math.inf) -> IO[bytes]:
    """A plain file of `most` bytes at most: none that never ends or waits for a writer. Raises
    OSError, and UsageError for anything else."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    found = os.fstat(number)
    if stat.S_ISREG(found.st_mode) and found.st_size <= most:
        return os.fdopen(number, "rb")
    os.close(number)
    if stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path}: {_too_large(most)}")
    raise UsageError(f"{path}: {_kind(found.st_mode)}", "a plain file is wanted here")


def read_file(path: Path, most: int) -> bytes:
    """All of it; see `open_file`."""
    with open_file(path, most) as file:
        found = file.read(most + 1)  # some files of /proc do not show their size
    if len(found) > most:
        raise UsageError(f"{path}: {_too_large(most)}")
    return found


def loads(text: str) -> Any:
    """The data of a JSON text. Its numbers allow arithmetic, and its texts can be written. Raises
    ValueError."""
    try:
        found = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _bounded(found, MAX_DEPTH)
    # Half a character, by the one escape that can make one.
    return _whole(found) if "\\ud" in text or "\\uD" in text else found


def of_version(where: str, what: str, version: Any, reads: range) -> None:
    """Raises UsageError for a version that this labctl does not read. A value that is no version
    passes: its type is refused anyway."""
    text = str(version)
    if not text.isdecimal() or int(text) in reads:
        return
    writer, known, hint = "an older", f"from {reads[0]} on", "run it again"
    if int(text) > reads[-1]:
        writer, known, hint = "a newer", f"up to {reads[-1]}", "update labctl"
    raise UsageError(
        f"{where}: written by {writer} labctl ({what} version {text[:20]}; "
        f"this one reads {known}): {hint}"
    )


def typed(kind: type[T], data: Any) -> T:
    """JSON data as a dataclass, by the types of its fields. Raises ValueError."""
    from pydantic import ValidationError

    from labctl.ground.plain import shown

    try:
        found: T = _ADAPTERS[kind].validate_python(data)
        return found
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        if first["type"] == "missing":
            raise ValueError(f"{where} is missing") from exc
        words = WORDS.get(first["type"], first["msg"].replace("Input should be", "allowed is"))
        raise ValueError(f"{where}: {words}, not {shown(first['input'])}") from exc


class _Adapters(dict[object, "TypeAdapter[Any]"]):
    """Makes them when they are needed: that takes a moment, and so does the import."""

    def __missing__(self, kind: Any) -> TypeAdapter[Any]:
        from pydantic import TypeAdapter

        return self.setdefault(kind, TypeAdapter(kind))


_ADAPTERS = _Adapters()


def _int(text: str) -> int:
    if len(text) > 20 or abs(found := int(text)) > LARGEST:
        raise ValueError(f"the number {text[:20]}... is too large")
    return found


def _float(text: str) -> float:
    if not abs(found := float(text)) <= LARGEST:
        raise ValueError(f"{text[:20]} is no number to reckon with")
    return found


_DECODER = json.JSONDecoder(parse_int=_int, parse_float=_float, parse_constant=_float)


def _bounded(value: Any, levels: int) -> None:
    below = value.values() if isinstance(value, dict) else value
    for each in below if isinstance(value, dict | list) else ():
        if not levels:
            raise ValueError(TOO_DEEP)
        _bounded(each, levels - 1)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_whole(key): _whole(below) for key, below in value.items()}
    return [_whole(below) for below in value] if isinstance(value, list) else value


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device" if stat.S_ISCHR(mode) else "no file"


def _too_large(most: float) -> str:
    return f"larger than {most / 1_000_000:g} MB, which is the most"
