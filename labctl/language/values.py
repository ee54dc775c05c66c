"""The small values of the scenario language, as types that validate themselves.

They check names (hosts, processes) against the scenario at hand, which comes as pydantic's
validation context: a `Names`.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import islice
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from labctl.backends import RIGHTS
from labctl.ground import patterns, signals
from labctl.ground.data import dataclass
from labctl.ground.durations import LONGEST, seconds
from labctl.ground.errors import MOST_MISTAKES
from labctl.ground.plain import shown
from labctl.language.calls import each_read, host_of
from labctl.language.facts import Range
from labctl.probes.sockets import State

HOST_NAME = re.compile(
    r"(?!(?:\d+|0[xX][0-9A-Fa-f]*)$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
"""RFC 1123, section 2.1; but nothing that inet_aton(3) takes for an address."""
PROCESS_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
SYSCTL_KEY = re.compile(r"net\.(?:nf_conntrack_max|[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+)")
PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
COMPARISON = re.compile(r"(>=|<=|==|!=|>|<)?\s*(\d+)", re.ASCII)
SHAPE = "labctl"
"""Marks a schema that a name in json_shapes.py replaces."""
OPERATORS: Mapping[str, Callable[[int, int], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq,
    "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
MAX_ADDRESSES = 16
MOST_CHOICES = 100
"""How many names a message lists."""
MOST_COMPARED = 1000
"""Among how many names it searches for the one that was meant: that takes long."""


OF_PROJECT = -1
"""Instead of how many addresses a host has: that is known only when its project has run."""


@dataclass(frozen=True)
class Names:
    """What a scenario defines: how many addresses each host has, the host of each process, and
    which of several networks each host is in."""

    hosts: Mapping[str, int]
    processes: Mapping[str, str]
    networks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def places(self) -> list[str]:
        """Every name that stands for an address: `server`, `server.v6`, `server.2`, `server.2.v6`,
        and `server.outside` and `server.outside.v6` in networks of these names; of a host of a
        project, its own alone."""
        return [*self._places()]

    def _places(self) -> Iterator[str]:
        for host, addresses in self.hosts.items():
            if addresses == OF_PROJECT:
                yield host
                continue
            networks = self.networks.get(host, ())
            count = min(max(addresses, len(networks), 1), MAX_ADDRESSES)
            numbers = [host, *(f"{host}.{number}" for number in range(2, count + 1))]
            for name in (*numbers, *(f"{host}.{network}" for network in networks)):
                yield from (name, f"{name}.v6")


def problem(message: str, **context: Any) -> PydanticCustomError:
    """A validation error with a message of our own."""
    return PydanticCustomError("labctl", "{message}", {"message": message, **context})


def unknown(what: str, name: object, allowed: Iterable[str]) -> str:
    """`unknown WHAT 'NAME'; allowed: ...; did you mean ...`"""
    return f"unknown {what} {str(name)!r}; {choices(name, allowed)}"


def choices(name: object, allowed: Iterable[str]) -> str:
    """`allowed: ...; did you mean ...`"""
    known = list(allowed)
    more = f" and {len(known) - MOST_CHOICES} more" if len(known) > MOST_CHOICES else ""
    near = known if len(known) <= MOST_COMPARED else []
    close = difflib.get_close_matches(str(name), near, n=1, cutoff=0.55)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"allowed: {', '.join(known[:MOST_CHOICES]) or 'none'}{more}{hint}"


class Model(BaseModel):
    """The base of everything that comes from a scenario: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=False)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Says which keys are allowed, and reports all mistakes of a mapping at once."""
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            raise problem(f"a mapping is wanted here, not {shown(data)}")
        optional = {f.alias or name for name, f in cls.model_fields.items() if f.default is None}
        details = [
            InitErrorDetails(
                type=problem(f"{key!r} has no value; give it one, or leave it out"),
                loc=(key,),
                input=None,
            )
            for key, value in data.items()
            if value is None and key in optional
        ]
        try:
            found = handler(data)
        except ValidationError as exc:
            details += [
                InitErrorDetails(
                    type=problem(cls._message(error), **_place(error)),
                    loc=error["loc"],
                    input=error["input"],
                )
                for error in exc.errors()
            ]
        if not details:
            return found
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
        if kind in WANTED:
            wanted = WANTED[kind].format(**error.get("ctx", {}))
        else:
            wanted = error["msg"].replace("Input should be", "allowed is")
        return f"{wanted}, not {shown(error['input'])}"


WANTED = {
    "dict_type": "a mapping is wanted here",
    "list_type": "a list is wanted here",
    "int_type": "a whole number is wanted here",
    "int_parsing": "a whole number is wanted here",
    "int_from_float": "a whole number is wanted here",
    "greater_than_equal": "{ge} or more is wanted here",
    "less_than_equal": "{le} or less is wanted here",
    "bool_type": "true or false is wanted here",
    "bool_parsing": "true or false is wanted here",
    "too_short": "one or more are wanted here",
}
"""pydantic's kinds of errors, in our words."""


def _place(error: Any) -> dict[str, Any]:
    """What an error says about its place: `key` below its path, `offset` in lines of its text."""
    return {name: error["ctx"][name] for name in ("key", "offset") if name in error.get("ctx", {})}


def brief(text: str) -> str:
    """A text in one line: its first line, and how many there are."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    more = f" … ({len(lines)} lines)" if len(lines) > 1 else ""
    return f"{lines[0]}{more}" if lines else ""


def names(info: ValidationInfo) -> Names:
    context = info.context
    assert isinstance(context, Names)
    return context


def _host(value: Any, info: ValidationInfo) -> str:
    return known("host", value, names(info).hosts)


def _process(value: Any, info: ValidationInfo) -> str:
    processes = names(info).processes
    if isinstance(value, str) and value in names(info).hosts and value not in processes:
        has = f"{value!r} is a host, and no process of it has that name: give it `calls` or `run`"
        raise problem(f"{unknown('process', value, processes)}; {has}")
    return known("process", value, processes)


def known(what: str, value: Any, names: Mapping[str, object]) -> str:
    """The value, if it is one of these names. Otherwise raises what `problem` makes."""
    if not isinstance(value, str):
        raise problem(f"a {what} is wanted here, not {shown(value)}; {choices(value, names)}")
    if value not in names:
        raise problem(unknown(what, value, names))
    return value


def parse_duration(value: Any) -> float:
    """Seconds. Raises what `problem` makes."""
    if (found := seconds(value)) is not None:
        return found
    raise problem(
        f"{shown(value)} is no duration; allowed: 50ms, 1.5s, 2m or a number of seconds, "
        f"{LONGEST / 86400:g} days at most"
    )


MEMORY = re.compile(r"(\d+) ?(b|[kmg]b?)?", re.IGNORECASE | re.ASCII)
LEAST_MEMORY = 6 << 20
"""Less than that no engine gives a container."""


def _memory(value: Any) -> int:
    found = MEMORY.fullmatch(str(value)) if isinstance(value, str | int) else None
    unit = (found[2] or "b").lower()[0] if found else ""
    size = int(found[1]) << (10 * "bkmg".index(unit)) if found else 0
    if isinstance(value, bool) or not LEAST_MEMORY <= size < 1 << 63:
        raise problem(f"{shown(value)} is no size of memory; allowed: 512m, 2g, 6m at least")
    return size


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
        if not low.strip() or not high.strip():
            raise problem(f"{shown(value)} is no range; allowed: 5s or 4.5s..7s")
        bounds = Within(parse_duration(low), parse_duration(high))
        if bounds.low > bounds.high:
            raise problem(f"{shown(value)} is an impossible range; the lower bound comes first")
        return bounds
    return Within(0.0, parse_duration(value))


@dataclass(frozen=True)
class Comparison:
    """`3`, `">=1000"`, `">0"`."""

    operator: str
    number: int

    def holds(self, value: int) -> bool:
        return OPERATORS[self.operator](value, self.number)

    def settled(self, value: int, most: float = math.inf) -> bool:
        """Whether it would decide the same for any greater value, up to `most`."""
        greater = (n for n in range(self.number - 1, self.number + 2) if value < n <= most)
        return all(self.holds(n) == self.holds(value) for n in greater)

    @property
    def bounds(self) -> Range | None:
        """The whole numbers from 0 on for which it holds; None for `!=`, which is no range."""
        n = self.number
        return {
            "==": Range(n, n), ">=": Range(n), ">": Range(n + 1),
            "<=": Range(0, n), "<": Range(0, n - 1),
        }.get(self.operator)  # fmt: skip

    def __str__(self) -> str:
        return f"{'' if self.operator == '==' else self.operator}{self.number}"


def _comparison(value: Any) -> Comparison:
    if isinstance(value, Comparison):
        return value
    match = COMPARISON.fullmatch(str(value).strip())
    if isinstance(value, bool) or not match:
        raise problem(f'{shown(value)} is no number to compare with; allowed: 3, ">=1000", ">0"')
    found = Comparison(match.group(1) or "==", int(match.group(2)))
    if (found.operator, found.number) == ("<", 0):
        raise problem(f"{shown(value)} is an impossible range: there is no such number")
    return found


def _percent(value: Any) -> float:
    match = PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match or float(match[1]) > 100:
        raise problem(f"{shown(value)} is no percentage; allowed: 0% to 100%, such as 2.5%")
    return float(match[1])


def _state(value: Any) -> State:
    try:
        return State.parse(str(value))
    except ValueError as exc:
        raise problem(str(exc)) from exc


def _signal(value: Any) -> str:
    name = None if isinstance(value, bool) else signals.parse(str(value))
    if name is None:
        raise problem(unknown("signal", value, signals.USUAL))
    return name


def _sysctl_key(value: Any) -> str:
    if not isinstance(value, str) or not SYSCTL_KEY.fullmatch(value):
        raise problem(
            f"{shown(value)} is no sysctl of a network namespace; allowed: net.* in full, such as "
            "net.ipv4.tcp_fin_timeout"
        )
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
    if isinstance(value, bool):
        raise problem(f"a text is wanted here, not {value}; put the word in quotation marks")
    if not isinstance(value, str | int | float):
        raise problem(f"a text is wanted here, not {shown(value)}")
    text: str = getattr(value, "written", str(value))
    if "\0" in text:
        raise problem("a text can't hold a null character")
    return text


def _variable(value: Any) -> str:
    text = _text(value)
    if not text or "=" in text:
        raise problem(f"{shown(value)} is no variable's name; allowed: a word without =")
    return text


def _regex(value: Any) -> str:
    text = _text(value)
    try:
        patterns.check(text)
    except ValueError as exc:
        raise problem(f"{shown(value)} is no regular expression: {exc}") from exc
    return text


def _calls(value: Any, info: ValidationInfo) -> str:
    text = _text(value)
    known = names(info).places
    found = (
        InitErrorDetails(type=problem(message, offset=offset), input=line)
        for offset, line in enumerate(text.split("\n"))
        for message in _wrong_calls(line, known)
    )
    wrong = list(islice(found, MOST_MISTAKES))
    if wrong:
        raise ValidationError.from_exception_data("calls", wrong)
    return text


def _wrong_calls(line: str, known: Sequence[str]) -> Iterator[str]:
    for call in each_read(line):
        if isinstance(call, str):
            yield call
        elif not resolvable(host := host_of(call), known):
            yield unknown("host", host, known)


def resolvable(name: str, known: Sequence[str]) -> bool:
    if not name or name == "localhost" or name in known:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def shaped(name: str) -> WithJsonSchema:
    """The JSON Schema of that name in json_shapes.py."""
    return WithJsonSchema({"type": "string", SHAPE: name})


HostName = Annotated[str, BeforeValidator(_host), shaped("HostName")]
ProcessName = Annotated[str, BeforeValidator(_process), shaped("ProcessName")]
Duration = Annotated[float, BeforeValidator(parse_duration), shaped("Duration")]
WithinRange = Annotated[Within, BeforeValidator(_within), shaped("Within")]
Count = Annotated[Comparison, BeforeValidator(_comparison), shaped("Count")]
Percent = Annotated[float, BeforeValidator(_percent), shaped("Percent")]
StateName = Annotated[State, BeforeValidator(_state), shaped("State")]
SignalName = Annotated[str, BeforeValidator(_signal), shaped("SignalName")]
SysctlKey = Annotated[str, BeforeValidator(_sysctl_key), shaped("SysctlKey")]
SysctlValue = Annotated[str, BeforeValidator(_sysctl_value), shaped("SysctlValue")]
Label = Annotated[str, BeforeValidator(_label), shaped("Label")]
Text = Annotated[str, BeforeValidator(_text), shaped("Text")]
ParamName = Annotated[str, shaped("ParamName")]
Variable = Annotated[str, BeforeValidator(_variable), shaped("Variable")]
Regex = Annotated[str, BeforeValidator(_regex), shaped("Regex")]
Truth = Annotated[bool, Field(strict=True)]
Right = Annotated[
    str, BeforeValidator(lambda value: known("right", value, RIGHTS)), shaped("Right")
]
Uid = Annotated[
    int | None,
    Field(ge=0, le=65535, strict=True),
    BeforeValidator(lambda value: None if value == "" else value),
    shaped("Uid"),
]
Memory = Annotated[int, BeforeValidator(_memory), shaped("Memory")]
Calls = Annotated[str, BeforeValidator(_calls), shaped("Calls")]
OFF = (False, "off")
"""How `calls: off` may be read."""
ProgramCalls = Annotated[str, BeforeValidator(_calls), shaped("ProgramCalls")]
