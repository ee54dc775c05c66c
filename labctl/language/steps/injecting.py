"""`inject: {...}`: a packet that a host sends, without its own TCP knowing of it."""

from __future__ import annotations

import base64
import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.config import JsonDict

from labctl.backends import protocol
from labctl.ground.plain import shown
from labctl.lab.crafting import (
    LONGEST_OPTIONS,
    Crafted,
    Options,
    Position,
    Stamps,
    craft_error,
    load_forge,
)
from labctl.lab.icmp import ERRORS
from labctl.language.predicates.pattern import SOME, WITH_DATA, EcnBit, Flags, check_ecn
from labctl.language.steps.base import Step, StepFailed
from labctl.language.steps.faults import Side
from labctl.language.values import Model, Truth, known, problem, shaped
from labctl.probes.conversations import Conversation, conversations
from labctl.probes.observations import MODULUS
from labctl.record.events import InjectEvent

if TYPE_CHECKING:
    from labctl.lab.lab import Lab
    from labctl.record.history import History

MOST_PAYLOAD = 1200
LARGEST = MODULUS - 1
MTU = 1280
ICMP_ALONE = ("flags", "ack", "payload", "options", "window", "ecn", "absolute")
"""Keys of a segment, which an ICMP error has not."""
WITH_ACK: JsonDict = {
    "anyOf": [
        {"type": "string", "pattern": r"ACK|\$\{"},
        {"type": "array", "contains": {"type": "string", "pattern": r"ACK|\$\{"}},
    ]
}
"""What the JSON Schema says about `flags` on which `ack` depends."""


def _position(word: str, value: Any) -> Position:
    if isinstance(value, Position):
        return value
    match = re.fullmatch(rf"({word})?\s*([+-]?\s*\d+)?", str(value).strip())
    ahead, digits = match.groups() if match else (None, None)
    number = int(digits.replace(" ", "")) if digits else 0
    wrong = not (ahead or digits) or isinstance(value, bool) or abs(number) > LARGEST
    if wrong or (digits and (digits[0] in "+-") != bool(ahead)):
        what = "sequence number" if word == "next" else "timestamp"
        raise problem(
            f"{shown(value)} is no {what}; allowed: {word}, {word}+5, {word}-5, or a number "
            "that counts from the connection's first one, which is 0"
        )
    return Position(number, bool(ahead))


def _payload(value: Any) -> str:
    if not isinstance(value, str) or len(value.encode()) > MOST_PAYLOAD:
        raise problem(f"a payload is a text of {MOST_PAYLOAD} bytes at most, not {shown(value)}")
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"(?:[0-9A-Fa-f]{2}\s*)*", value):
        raise problem(
            f"{shown(value)} are no bytes; allowed: pairs of hexadecimal digits in quotation "
            'marks, such as "fe04f989"'
        )
    return bytes.fromhex(value)


Number = Annotated[Position, BeforeValidator(partial(_position, "next")), shaped("SequenceNumber")]
Stamp = Annotated[Position, BeforeValidator(partial(_position, "last")), shaped("Timestamp")]
Payload = Annotated[
    str,
    BeforeValidator(_payload),
    WithJsonSchema({"type": "string", "maxLength": MOST_PAYLOAD}),
]
Bytes = Annotated[bytes, BeforeValidator(_bytes), shaped("Bytes")]
IcmpError = Annotated[
    str, BeforeValidator(partial(known, "ICMP error", names=ERRORS)), shaped("IcmpError")
]


class StampsPattern(Model):
    """The timestamps of a segment."""

    val: Stamp = Position()
    ecr: Stamp = Position()


def _stamps(value: Any, info: ValidationInfo) -> StampsPattern | bool:
    if isinstance(value, bool):
        return StampsPattern() if value else False
    return StampsPattern.model_validate(value, context=info.context)


class OptionsPattern(Model):
    """The options of a segment."""

    mss: Annotated[int, Field(ge=0, le=65535, strict=True)] | None = None
    wscale: Annotated[int, Field(ge=0, le=255, strict=True)] | None = None
    sack: Truth = False
    timestamps: Annotated[Any, BeforeValidator(_stamps), shaped("Timestamps")] = None
    fastopen: Bytes | None = None
    md5: Bytes | None = None
    raw: Bytes = b""

    @model_validator(mode="after")
    def _short(self) -> OptionsPattern:
        if self.md5 is not None and len(self.md5) != 16:
            raise problem(f"an MD5 signature has 16 bytes, not {len(self.md5)} (RFC 2385)")
        stamps = (0, 0) if self.timestamps else None
        if (size := len(self.compiled.packed(stamps))) > LONGEST_OPTIONS:
            raise problem(f"options of {size} bytes; {LONGEST_OPTIONS} are the most")
        return self

    @property
    def compiled(self) -> Options:
        """For the crafting."""
        stamps: Stamps | bool = self.timestamps is None
        if isinstance(self.timestamps, StampsPattern):
            stamps = Stamps(self.timestamps.val, self.timestamps.ecr)
        return Options(self.mss, self.wscale, self.sack, stamps, self.fastopen, self.md5, self.raw)


class InjectPattern(Model):
    """A segment or an ICMP error, and its connection."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {"properties": {"flags": WITH_DATA}, "required": ["flags"]},
            "if": {"required": ["ack"]},
            "then": {"properties": {"flags": WITH_ACK}},
            "anyOf": [{"required": ["flags"]}, {"required": ["icmp"]}],
        }
    )

    from_: Side = Field(alias="from")
    to: Side
    flags: Flags | None = None
    seq: Number | None = None
    ack: Number | None = None
    absolute: Truth = False
    payload: Payload = ""
    window: Annotated[int, Field(ge=0, le=65535, strict=True)] | None = None
    options: OptionsPattern | None = None
    ecn: Annotated[dict[EcnBit, Truth], SOME] | None = None
    icmp: IcmpError | None = None
    mtu: Annotated[int, Field(ge=68, le=65535, strict=True)] | None = None
    connection: Annotated[int, Field(ge=1, strict=True)] | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> InjectPattern:
        if self.icmp is None and self.flags is None:
            raise problem("'flags' is missing; a segment needs it, and an ICMP error has 'icmp'")
        if "data" in (self.flags or ()):
            raise problem("'data' is no flag of a segment; give it a 'payload'")
        if self.ack is not None and "ACK" not in (self.flags or ()):
            raise problem("'ack' counts only with the flag ACK; add it, or leave 'ack' out")
        if self.icmp and (strange := [key for key in ICMP_ALONE if key in self.model_fields_set]):
            raise problem(f"{strange[0]!r} is of a segment, and 'icmp' sends none; keep one")
        if self.mtu is not None and self.icmp != "fragmentation-needed":
            raise problem("'mtu' is of the ICMP error fragmentation-needed alone")
        check_ecn(self.ecn or {})
        return self

    @property
    def _ecn(self) -> tuple[str, ...]:
        return tuple(bit for bit, is_set in (self.ecn or {}).items() if is_set)

    @property
    def crafted(self) -> Crafted:
        """The segment itself."""
        options = self.options.compiled if self.options else Options()
        return Crafted(
            self.flags or (), self.seq or Position(), self.ack or Position(), self.payload,
            options, self.window, self._ecn, self.absolute,
        )  # fmt: skip

    def craft(self, connection: Conversation, source: str) -> tuple[int, int, bytes]:
        """Its numbers, which count from the connection's first ones, and the IP packet. Raises
        StepFailed."""
        if self.icmp is None:
            return self.crafted.craft(connection, source)
        target = connection.other(source)
        quoted = connection.of(target).last
        if quoted is None:
            raise StepFailed(f"inject {self}", f"a segment from {target} to quote", "none")
        sent = connection.of(target)
        seq = self.seq.of(sent.first, sent.following) if self.seq else quoted.seq
        wire = (sent.first + seq) % MODULUS
        packet = craft_error(ERRORS[self.icmp], self.mtu or MTU, quoted, wire)
        if not packet:
            raise StepFailed(
                f"inject {self}", f"an IPv4 connection: IPv6 has no {self.icmp}", target
            )
        return seq, 0, packet

    def choose(self, history: History) -> tuple[Conversation | None, str, int]:
        """The connection, the end that seems to send the segment, and how many connections there
        are to choose from, in several networks by the addresses that the host knows. Two ends that
        have none begin one."""
        here, there = self.from_.resolve(history), self.to.resolve(history)
        found, host = [], self.from_.host
        seen = (s for s in history.segments() if not history.networks.hosts
                or (host in (s.sender, s.receiver) and not s.only_through(host)))  # fmt: skip
        for each in conversations(seen):
            for source, target in (each.ends, each.ends[::-1]):
                if here.covers(source) and there.covers(target):
                    found.append((each, source))
        if not found and self.connection is None and self.icmp is None:
            ends = self.from_.end(history), self.to.end(history)
            if ends[0] and ends[1]:
                return Conversation((ends[0], ends[1])), ends[0], 0
        number = len(found) if self.connection is None else self.connection
        chosen, source = found[number - 1] if 1 <= number <= len(found) else (None, "")
        return chosen, source, len(found)

    def __str__(self) -> str:
        which = f" of connection {self.connection}" if self.connection else ""
        what = str(self.crafted)
        if self.icmp:
            about = f" about seq {self.seq}" if self.seq else ""
            what = f"ICMP {self.icmp}{f' {self.mtu}' if self.mtu else ''}{about}"
        return f"{what} from {self.from_} to {self.to}{which}"


class Inject(Step):
    """Makes a host send one crafted packet, without its own TCP knowing of it."""

    verb = "inject"
    inject: InjectPattern

    def load(self) -> None:
        load_forge()

    @property
    def about(self) -> tuple[str, ...]:
        return self.inject.from_.host, self.inject.to.host

    def act(self, lab: Lab) -> None:
        lab.flush()
        pattern = self.inject
        chosen, source, count = pattern.choose(lab.history)
        if chosen is None:
            number = f" number {pattern.connection}" if pattern.connection else ""
            expected = f"a connection{number} between {pattern.from_} and {pattern.to}"
            raise StepFailed(str(self), expected, f"{count} of them" if count else "none")
        seq, ack, packet = pattern.craft(chosen, source)
        data = base64.b64encode(packet).decode()
        host = pattern.from_.host
        answer = lab.fault(host, protocol.Inject(data))
        lab.emit(InjectEvent(answer.t, host, data, seq, ack))
