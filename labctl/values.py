"""The small values of the scenario language, as types that validate themselves.

Names (hosts, processes) are checked against the scenario at hand, which comes as pydantic's
validation context: a `Names`.
"""

from __future__ import annotations

import difflib
import operator
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from labctl.calls import CallError, parse_calls
from labctl.probes.sockets import State

HOST_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?")
PROCESS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
SYSCTL_KEY = re.compile(r"net(?:\.[A-Za-z0-9_-]+){2,}")
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)?")
SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
COMPARISON = re.compile(r"(>=|<=|==|!=|>|<)?\s*(\d+)")
OPERATORS: Mapping[str, Callable[[int, int], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq,
    "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
SIGNALS = tuple(sorted(s.name.removeprefix("SIG") for s in signal.Signals))


@dataclass(frozen=True)
class Names:
    """What a scenario defines: addresses a host, the host of each process, and which run calls."""

    hosts: Mapping[str, int]
    processes: Mapping[str, str]


def problem(message: str, **context: Any) -> PydanticCustomError:
    """A validation error with a message of our own."""
    return PydanticCustomError("labctl", "{message}", {"message": message, **context})


def unknown(what: str, name: object, allowed: Iterable[str]) -> str:
    """`unknown WHAT 'NAME'; allowed: ...; did you mean ...`"""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.55)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {str(name)!r}; allowed: {', '.join(allowed) or 'none'}{hint}"


class Model(BaseModel):
    """The base of everything that is read from a scenario: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=False)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Says which keys are allowed, and reports all mistakes of a mapping at once."""
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            raise problem(f"a mapping is wanted here, not {shown(data)}")
        try:
            return handler(data)
        except ValidationError as exc:
            details = [
                InitErrorDetails(
                    type=problem(cls._message(error), **_offset(error)),
                    loc=error["loc"],
                    input=error["input"],
                )
                for error in exc.errors()
            ]
        raise ValidationError.from_exception_data(cls.__name__, details)

    @classmethod
    def _keys(cls) -> list[str]:
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def _message(cls, error: Any) -> str:
        kind = error["type"]
        if len(error["loc"]) == 1 and kind == "extra_forbidden":
            return unknown("key", error["loc"][0], cls._keys())
        if len(error["loc"]) == 1 and kind == "missing":
            return f"{error['loc'][0]!r} is missing; it is required here"
        if kind == "labctl":
            return str(error["ctx"]["message"])
        return f"{error['msg'].removeprefix('Value error, ')}, not {shown(error['input'])}"


def _offset(error: Any) -> dict[str, int]:
    context = error.get("ctx", {})
    return {"offset": context["offset"]} if "offset" in context else {}


def shown(value: object) -> str:
    """A value as a message quotes it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _names(info: ValidationInfo) -> Names:
    context = info.context
    assert isinstance(context, Names)
    return context


def _host(value: Any, info: ValidationInfo) -> str:
    hosts = _names(info).hosts
    if value not in hosts:
        raise problem(unknown("host", value, hosts))
    return str(value)


def _process(value: Any, info: ValidationInfo) -> str:
    processes = _names(info).processes
    if value not in processes:
        raise problem(unknown("process", value, processes))
    return str(value)


def _duration(value: Any) -> float:
    if isinstance(value, str) and (match := DURATION.fullmatch(value.strip())):
        return float(match.group(1)) * SECONDS[match.group(2)]
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise problem(f"{shown(value)} is no duration; allowed: 50ms, 1.5s, 2m or a number of seconds")


@dataclass(frozen=True)
class Within:
    """Bounds in seconds: `5s` is 0 to 5, `4.5s..7s` has both."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g} s" if self.low else f"{self.high:g} s"


def _within(value: Any) -> Within:
    if isinstance(value, Within):
        return value
    low, dots, high = str(value).partition("..")
    if isinstance(value, str) and dots:
        bounds = Within(_duration(low), _duration(high))
        if bounds.low > bounds.high:
            raise problem(f"{shown(value)} is an impossible range; the lower bound comes first")
        return bounds
    return Within(0.0, _duration(value))


@dataclass(frozen=True)
class Comparison:
    """`3`, `">=1000"`, `">0"`."""

    operator: str
    number: int

    def holds(self, value: int) -> bool:
        return OPERATORS[self.operator](value, self.number)

    def __str__(self) -> str:
        return f"{'' if self.operator == '==' else self.operator}{self.number}"


def _comparison(value: Any) -> Comparison:
    if isinstance(value, Comparison):
        return value
    match = COMPARISON.fullmatch(str(value).strip())
    if isinstance(value, bool) or not match:
        raise problem(f'{shown(value)} is no number to compare with; allowed: 3, ">=1000", ">0"')
    return Comparison(match.group(1) or "==", int(match.group(2)))


def _state(value: Any) -> State:
    try:
        return State.parse(str(value))
    except ValueError as exc:
        raise problem(str(exc)) from exc


def _signal(value: Any) -> str:
    name = str(value).upper().removeprefix("SIG")
    if name not in SIGNALS:
        raise problem(unknown("signal", value, SIGNALS))
    return name


def _sysctl_key(value: Any) -> str:
    if not isinstance(value, str) or not SYSCTL_KEY.fullmatch(value):
        raise problem(f"{shown(value)} is no sysctl of a network namespace; allowed: net.*")
    return value


def _sysctl_value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise problem(f"{shown(value)} is no sysctl value; allowed: a number or a text")
    return str(value)


def _label(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise problem(f"{shown(value)} is no label; allowed: a word or a phrase")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise problem(f"a text is wanted here, not {shown(value)}")
    return str(value)


def _regex(value: Any) -> str:
    try:
        re.compile(_text(value))
    except re.error as exc:
        raise problem(f"{shown(value)} is no regular expression: {exc}") from exc
    return str(value)


def _calls(value: Any, info: ValidationInfo) -> str:
    text = _text(value)
    try:
        calls = parse_calls(text)
    except CallError as exc:
        raise problem(str(exc), offset=exc.offset) from exc
    hosts = _names(info).hosts
    for call in calls:
        if call.name in ("bind", "connect") and not _resolvable(call.args[0], hosts):
            known = [*hosts, *(f"{host}.v6" for host in hosts)]
            raise problem(unknown("host", call.args[0], known), offset=call.offset)
    return text


def _resolvable(name: str, hosts: Mapping[str, int]) -> bool:
    if (
        not name
        or name == "localhost"
        or re.fullmatch(r"[0-9.]+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*", name)
    ):
        return True
    host, _, rest = name.partition(".")
    number = rest.removesuffix("v6").removesuffix(".")
    if host not in hosts or rest not in (number, f"{number}.v6".lstrip("."), "v6"):
        return False
    return not number or (number.isdigit() and 1 < int(number) <= hosts[host])


_STRING: dict[str, Any] = {"type": "string"}
_NUMBER_OR_STRING: dict[str, Any] = {"type": ["integer", "string"]}


HostName = Annotated[str, BeforeValidator(_host), WithJsonSchema(_STRING)]
ProcessName = Annotated[str, BeforeValidator(_process), WithJsonSchema(_STRING)]
Duration = Annotated[
    float, BeforeValidator(_duration), WithJsonSchema({"type": ["number", "string"]})
]
WithinRange = Annotated[
    Within, BeforeValidator(_within), WithJsonSchema({"type": ["number", "string"]})
]
Count = Annotated[Comparison, BeforeValidator(_comparison), WithJsonSchema(_NUMBER_OR_STRING)]
StateName = Annotated[State, BeforeValidator(_state), WithJsonSchema(_STRING)]
SignalName = Annotated[str, BeforeValidator(_signal), WithJsonSchema({"enum": list(SIGNALS)})]
SysctlKey = Annotated[
    str, BeforeValidator(_sysctl_key), WithJsonSchema({"type": "string", "pattern": "^net\\."})
]
SysctlValue = Annotated[str, BeforeValidator(_sysctl_value), WithJsonSchema(_NUMBER_OR_STRING)]
Label = Annotated[str, BeforeValidator(_label), WithJsonSchema(_STRING)]
Text = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": ["string", "number"]})]
Regex = Annotated[
    str, BeforeValidator(_regex), WithJsonSchema({"type": "string", "format": "regex"})
]
Calls = Annotated[str, BeforeValidator(_calls), WithJsonSchema(_STRING)]
