"""What messages are, and how to read them; protocol.py has all of them.

Nothing passes for a message that is none, whoever wrote it: `NoMessage` says what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import (
    Any,
    ClassVar,
    Generic,
    NoReturn,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
)

from pydantic import BaseModel, ConfigDict, ValidationError

from labctl.backends import Message
from labctl.ground.data import dataclass

QUOTED = 80


class NoMessage(ValueError):
    """What a program said, or what somebody wrote in its place, is no message."""


class Heard(BaseModel):
    """A message from a program: everything that it needs is there, of its type, and nothing
    else."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )
    kind: ClassVar[str]
    added: ClassVar[int]
    t: float

    def __init_subclass__(cls, kind: str = "reply", added: int = 1) -> None:
        cls.kind, cls.added = kind, added

    @classmethod
    def of(cls, message: Message) -> Self:
        """The message as this class. Raises NoMessage."""
        data = message.copy()
        del data["kind"]
        try:
            found: Self = cls.__pydantic_validator__.validate_python(data)
            return found
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise NoMessage(f"{where}: {first['msg']}: {quoted(message)}") from exc


class Said(Heard):
    """A message that a program sends unasked."""

    def as_line(self) -> str:
        """As it is said, by those who have labctl."""
        return json.dumps({"kind": self.kind, **vars(self)})


class Answer(Heard):
    """A command is done; `t` is when it was done, or when it began."""

    id: int


class Failed(Answer):
    """A command could not be done."""

    error: str


A = TypeVar("A", bound=Answer)


@dataclass_transform(frozen_default=True)
class Command(Generic[A]):
    """What a program is to do, and the type of its answer. A frozen dataclass."""

    do: ClassVar[str]
    added: ClassVar[int]

    def __init_subclass__(cls, do: str, added: int = 1) -> None:
        cls.do, cls.added = do, added
        dataclass(frozen=True)(cls)

    def as_json(self) -> Message:
        """The message to send."""
        return {"do": self.do, **vars(self)}

    @classmethod
    def answered(cls, message: Message) -> A | Failed:
        """The answer in a message. Raises NoMessage."""
        answer: type[A] = get_args(cls.__orig_bases__[0])[0]  # type: ignore[attr-defined]
        return Failed.of(message) if "error" in message else answer.of(message)


class Program:
    """What one of the programs says, and the commands that it takes."""

    def __init__(self, says: Sequence[type[Said]], does: Sequence[type[Command[Any]]]) -> None:
        self.says = {said.kind: said for said in says}
        self.does = tuple(does)

    def heard(self, message: Message) -> Said:
        """A message from it. Raises NoMessage."""
        if (kind := message["kind"]) not in self.says:
            raise NoMessage(f"unknown kind {kind!r}: {quoted(message)}")
        return self.says[kind].of(message)


def read(line: bytes) -> Message:
    """The message in a line: a JSON object with a `kind`. Raises NoMessage."""
    try:
        text = line.decode()
        message = json.loads(text, parse_constant=_refused)
        if "\\ud" in text.lower():  # perhaps half a character, which no file can hold
            json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise NoMessage(f"{quoted(line)}: {exc}") from exc
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise NoMessage(f"{quoted(line)}: no object with a kind")
    return message


def asked(message: Message) -> int | None:
    """The `id` of the command that a message answers; None if it is no answer. Raises
    NoMessage."""
    if message["kind"] != "reply":
        return None
    if not isinstance(found := message.get("id"), int):
        raise NoMessage(f"an answer to nothing: {quoted(message)}")
    return found


def quoted(what: object) -> str:
    """The head of a message."""
    text = what.decode(errors="replace").rstrip("\n") if isinstance(what, bytes) else str(what)
    return repr(text if len(text) <= QUOTED else text[: QUOTED - 3] + "...")


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
