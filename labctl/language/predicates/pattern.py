"""Which segments a claim is about: who sent them to whom, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from labctl.ground import patterns
from labctl.ground.patterns import TooSlow
from labctl.language.facts import Range
from labctl.language.values import (
    Comparison,
    Count,
    HostName,
    Model,
    Regex,
    Truth,
    known,
    problem,
    shaped,
    unknown,
)
from labctl.probes.observations import ECN_FIELDS, ECN_FLAGS, MODULUS, OPTIONS, Segment


def _flags(value: Any) -> tuple[str, ...]:
    words = value if isinstance(value, list) else re.split(r"[\s,+|]+", str(value).strip())
    for word in words:
        if word not in SEGMENT_FLAGS:
            raise problem(unknown("flag", word, SEGMENT_FLAGS))
    return tuple(words)


SEGMENT_FLAGS = ("SYN", "ACK", "FIN", "RST", "PSH", "URG", "data")
ECN_BITS = dict.fromkeys((*ECN_FLAGS, *filter(None, ECN_FIELDS)))
OPTION_NAMES = dict.fromkeys(OPTIONS.values())
Flags = Annotated[tuple[str, ...], BeforeValidator(_flags), shaped("Flags")]
EcnBit = Annotated[
    str, BeforeValidator(partial(known, "ECN bit", names=ECN_BITS)), shaped("EcnBit")
]
OptionName = Annotated[
    str, BeforeValidator(partial(known, "option", names=OPTION_NAMES)), shaped("OptionName")
]
SOME = Field(min_length=1)
CUT = "\ufffd"
"""Stands for data that was not captured."""

WITH_DATA: JsonDict = {
    "anyOf": [
        {"type": "string", "pattern": r"(?:^|[\s,+|])data(?:[\s,+|]|$)"},
        {"type": "array", "contains": {"const": "data"}},
    ]
}
"""What the JSON Schema says about `flags` on which other keys depend."""
BARE: JsonDict = {
    "if": {"properties": {"bare": {"const": True}}, "required": ["bare"]},
    "then": {"required": ["flags"], "not": {"properties": {"flags": WITH_DATA}}},
}


def check_bare(flags: Iterable[str] | None) -> None:
    """Raises what `problem` makes, unless flags can be all that a segment has."""
    if not flags or "data" in flags:
        raise problem("'bare' segments have the flags in 'flags' and nothing else; name some")


def check_ecn(bits: Mapping[str, bool]) -> None:
    """Raises what `problem` makes, unless a segment can have all of these."""
    if sum(bits.get(name, False) for name in ECN_FIELDS) > 1:
        raise problem("IP has one of ECT0, ECT1 and CE; keep one")


class SegmentPattern(Model):
    """Segments of one kind, and what follows them."""

    model_config = ConfigDict(json_schema_extra=BARE)

    from_: HostName | None = Field(None, alias="from")
    to: HostName | None = None
    flags: Flags | None = None
    bare: Truth = False
    data: Truth | None = None
    seq: Count | None = None
    ack: Count | None = None
    length: Count | None = None
    window: Count | None = None
    tsval: Count | None = None
    tsecr: Count | None = None
    ecn: Annotated[dict[EcnBit, Truth], SOME] | None = None
    options: Annotated[dict[OptionName, Truth], SOME] | None = None
    payload: Regex | None = None
    retransmitted: Truth | None = None
    keepalive: Truth | None = None
    probe: Truth | None = None
    lost: Truth | None = None
    injected: Truth = False
    then: SegmentPattern | None = None

    @model_validator(mode="after")
    def _possible(self) -> SegmentPattern:
        # A pattern that no segment can match would always pass if it claims that there is none.
        if self.bare:
            check_bare(self.flags)
        without = self.data is False or self.bare
        if self.bare and self.data:
            raise problem("bare, but with data: an impossible segment")
        if self.data is False and "data" in (self.flags or ()):
            raise problem("with the flag data, but without data: an impossible segment")
        if without and (self.payload is not None or (self.length and not self.length.holds(0))):
            raise problem("without data, but with a payload or a length: an impossible segment")
        none = self.length is not None and self.length.bounds == Range(0, 0)
        if none and (self.data or "data" in (self.flags or ())):
            raise problem("with data, but with a length of 0: an impossible segment")
        if self.ack is not None and self.bare and "ACK" not in (self.flags or ()):
            raise problem("'ack' counts only with the flag ACK; add it, or leave 'ack' out")
        check_ecn(self.ecn or {})
        if self.injected and self.retransmitted:
            raise problem("injected and retransmitted: an impossible segment; what an inject sends "
                          "is no part of what the host has sent")  # fmt: skip
        return self

    @property
    def named(self) -> Iterator[str]:
        """The hosts that it names, and what is to follow."""
        yield from filter(None, (self.from_, self.to))
        if self.then:
            yield from self.then.named

    def matches(self, segment: Segment) -> bool | None:
        """Whether a segment is one of these; None if that depends on whether it will arrive, or on
        what no capture has of it."""
        if not (
            (segment.t is not None or segment.unseen)
            and segment.crafted == self.injected
            and self.from_ in (None, segment.sender)
            and self.to in (None, segment.receiver)
            and has(segment, self.flags or ())
            and self.data in (None, segment.length > 0)
            and self.retransmitted in (None, segment.retransmitted)
            and self.keepalive in (None, segment.keepalive)
            and self.probe in (None, segment.probe)
        ):
            return False
        if self.bare and (segment.length or len(segment.flags) > len({*(self.flags or ())})):
            return False
        fits = self.fits(segment)
        if fits is not False and self.lost is not None:
            doubtful = segment.pending or (segment.unseen and segment.arrived is None)
            if not doubtful and self.lost != segment.lost:
                return False
            return None if doubtful else fits
        return fits

    def fits(self, segment: Segment) -> bool | None:
        """Whether a segment's numbers, options and data are as wanted; None if no capture tells."""
        found = [
            _compared(segment, name, wanted)
            for name in NUMBERS if (wanted := getattr(self, name)) is not None
        ]  # fmt: skip
        for bit, set_ in (self.ecn or {}).items():
            found.append((bit in segment.header.ecn) == set_)
        for option, there in (self.options or {}).items():
            options = segment.header.options
            found.append(None if options is None else (option in options) == there)
        if False in found:
            return False
        if self.payload is not None:
            found.append(_holds(segment, self.payload))
        return False if False in found else None if None in found else True

    def __str__(self) -> str:
        words = ["bare"] if self.bare else []
        words += [" ".join(self.flags or ("segment",))]
        for name in ("retransmitted", "keepalive", "probe", "lost", "data"):
            value = getattr(self, name)
            words += [name if value else f"not {name}"] if value is not None else []
        words += [f"{name} {n}" for name in NUMBERS if (n := getattr(self, name)) is not None]
        for name, value in {**(self.ecn or {}), **(self.options or {})}.items():
            words += [f"{'with' if value else 'without'} {name}"]
        words += [f"payload /{self.payload}/"] if self.payload is not None else []
        words += ["injected"] if self.injected else []
        words += [f"from {self.from_}"] if self.from_ else []
        words += [f"to {self.to}"] if self.to else []
        words += [f"then {self.then}"] if self.then else []
        return " ".join(words)


NUMBERS = ("seq", "ack", "length", "window", "tsval", "tsecr")


def has(segment: Segment, flags: Iterable[str]) -> bool:
    """Whether a segment has all of these flags."""
    return {*flags} <= {*segment.flags, *(["data"] if segment.length else [])}


def _compared(segment: Segment, name: str, wanted: Comparison) -> bool | None:
    """Whether a number of a segment is as wanted; None if no capture tells it."""
    origin = segment.origin
    if name in ("seq", "ack"):
        if name == "ack" and "ACK" not in segment.flags:
            return False
        return None if name in origin.guessed else wanted.holds(getattr(segment, name))
    if name == "length":
        return wanted.holds(segment.length)
    if name == "window":
        if origin.scale is None and segment.window:
            return None
        return wanted.holds(segment.window << (origin.scale or 0))
    if segment.timestamps is None:
        return None if segment.header.options is None else False
    echo = name == "tsecr"
    if echo and "ACK" not in segment.flags:
        return False  # it has no meaning there (RFC 7323, section 3.2)
    first, of = (origin.tsecr, "ack") if echo else (origin.tsval, "seq")
    if first is None or of in origin.guessed:
        return None
    return wanted.holds((segment.timestamps[echo] - first) % MODULUS)


def _holds(segment: Segment, pattern: str) -> bool | None:
    """Whether a segment's data match a pattern; None if what was captured of them can't tell: a
    match that reaches its end may depend on what follows."""
    whole = len(segment.data) == segment.length
    text = segment.data.decode(errors="backslashreplace")
    try:
        found = patterns.search(pattern, text if whole else text + CUT)
    except TooSlow:
        return None
    if whole:
        return found is not None
    return True if found and found.end() < len(text) else None
