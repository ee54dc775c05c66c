"""How the values of a scenario look in its JSON Schema, each under a name.

They say as much as patterns can. Only the loader knows what a name refers to, and what some keys
mean together. Patterns use only what JavaScript and Python have in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labctl.backends import BACKENDS, RIGHTS
from labctl.backends.capabilities import CAPABILITIES
from labctl.ground import errnos, signals
from labctl.ground.durations import LONGEST
from labctl.lab.icmp import ANSWERS, ERRORS
from labctl.language.calls import peer
from labctl.language.document import PARAM_NAME, REFERENCE
from labctl.language.networks import NETWORK_NAME
from labctl.language.predicates.called import OUTCOMES as CALL_OUTCOMES
from labctl.language.predicates.called import VALUED
from labctl.language.predicates.pattern import ECN_BITS, OPTION_NAMES, SEGMENT_FLAGS
from labctl.language.predicates.process import OUTCOMES
from labctl.language.steps.base import KERNEL
from labctl.language.steps.faults import LONGEST_DELAY
from labctl.language.steps.injecting import LARGEST
from labctl.language.values import HOST_NAME, OFF, PROCESS_NAME, SYSCTL_KEY
from labctl.probes.sockets import SPELLINGS, State

Shape = dict[str, Any]
LATER: Shape = {"type": "string", "pattern": REFERENCE.pattern}
"""A value with a param in it: nothing is known of it yet."""


def text(pattern: str) -> Shape:
    """A text that a pattern matches as a whole."""
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def either(*shapes: Shape) -> Shape:
    """One of these."""
    return {"anyOf": list(shapes)}


def ref(name: str) -> Shape:
    """The shape of that name."""
    return {"$ref": f"#/$defs/{name}"}


def _any_case(words: Iterable[str], between: str = "") -> str:
    """A pattern of words, in upper or lower case, with `between` between their letters."""
    letters = (
        [f"[{c.upper()}{c.lower()}]" if c.isalpha() else f"[{c}]" for c in w] for w in sorted(words)
    )
    return "|".join(between.join(word) for word in letters)


BLANK = r"[-_\s]*"
STATE = rf"{BLANK}(?:{_any_case(['TCP'], BLANK)})?{BLANK}(?:{{}}){BLANK}"
NO_CONNECTION = {"LISTEN", "LISTENING", "UNCONN", "UNCONNECTED", "CLOSE", "CLOSED"}
LENGTH = r"\s*\d+(?:\.\d+)?\s*(?:ms|s|m|min|h)?\s*"
PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
NAME = r"[A-Za-z0-9-]+(?:\.(?:[0-9]+|[A-Za-z][A-Za-z0-9-]*))?(?:\.v6)?"
FLAG = "|".join(SEGMENT_FLAGS)
NTH = r"(?:[1-9]\d{0,8}(?:st|nd|rd|th)\s+)?"
CALL = (
    rf"[^\S\n]*(?:(?:{'|'.join(peer().CALLS)})(?![^\s;])[^\n]*|[#;\"'][^\n]*|"
    rf"[^\s;]*{REFERENCE.pattern}[^\n]*)?"
)
"""A line of calls; this checks only its first word."""

SHAPES: dict[str, Shape] = {
    "HostName": text(HOST_NAME.pattern),
    "NetworkName": text(NETWORK_NAME.pattern),
    "ProcessName": text(PROCESS_NAME.pattern),
    "ParamName": text(PARAM_NAME),
    "SysctlKey": text(SYSCTL_KEY.pattern),
    "SysctlValue": {"type": ["integer", "string"]},
    "Text": {"type": ["number", "string"]},
    "Line": either({"type": "number"}, text(r"\s*\S(?:[^\n]*\S)?\s*")),
    "Label": {"type": "string", "pattern": r"\S"},
    "Regex": either({"type": "number"}, {"type": "string", "format": "regex"}),
    "Variable": text("[^=]+"),
    "Duration": either({"type": "number", "minimum": 0, "maximum": LONGEST}, text(LENGTH)),
    "Delay": either({"type": "number", "minimum": 0, "maximum": LONGEST_DELAY}, text(LENGTH)),
    "Within": either(
        {"type": "number", "minimum": 0, "maximum": LONGEST}, text(rf"{LENGTH}(?:\.\.{LENGTH})?")
    ),
    "Count": either(
        {"type": "integer", "minimum": 0},
        text(r"\s*(?:(?!<\s*0+\s*$)(?:>=|<=|==|!=|>|<))?\s*\d+\s*"),
    ),
    "Kernel": either(
        {"type": "number", "minimum": 0}, text(rf"\s*(?:{KERNEL.pattern})\s*")
    ),
    "Backend": {"enum": list(BACKENDS)},
    "Capability": {"enum": list(CAPABILITIES)},
    "Right": {"enum": list(RIGHTS)},
    "Memory": either({"type": "integer", "minimum": 6 << 20}, text(r"\d+ ?([bB]|[kmgKMG][bB]?)?")),
    "Uid": either({"type": "integer", "minimum": 0, "maximum": 65535}, {"const": ""}),
    "Calls": text(rf"{CALL}(?:\n{CALL})*"),
    "ProgramCalls": either(text(rf"{CALL}(?:\n{CALL})*"), {"enum": [*OFF]}),
    "Command": either(
        {"type": "string", "pattern": r"^$|\S"},
        {"type": "array", "items": ref("Text"), "minItems": 1},
    ),
    "SignalName": either(
        {"enum": list(signals.NUMBERS.values())},
        text(rf"\d+|(?:{_any_case(['SIG'])})?(?:{_any_case(signals.NUMBERS)}|"
             rf"{_any_case(['RTMIN'])}\+\d+|{_any_case(['RTMAX'])}-\d+)"),
    ),
    "State": either({"enum": list(State)}, text(STATE.format(_any_case(SPELLINGS, BLANK)))),
    "ConnectionState": text(STATE.format(_any_case(SPELLINGS - NO_CONNECTION, BLANK))),
    "AnyEndpoint": text(
        rf"(?=.)(?:\*|{NAME}|[0-9.]+|\[[0-9A-Fa-f:.]+\])?(?::(?:{PORT}|\*))?|"
        "[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*"
    ),
    "Name": text(NAME),
    "Side": text(rf"{NAME}(?::(?:{PORT}))?"),
    "Flags": either(
        text(rf"\s*(?:{FLAG})(?:[\s,+|]+(?:{FLAG}))*\s*"),
        {"type": "array", "items": either({"enum": list(SEGMENT_FLAGS)}, ref("FilledLater"))},
    ),
    "Answer": {"enum": [*ANSWERS]},
    "EcnBit": {"enum": [*ECN_BITS]},
    "OptionName": {"enum": [*OPTION_NAMES]},
    "Percent": text(r"\s*\d+(?:\.\d+)?\s*%\s*"),
    "Rate": text(
        rf"(?=.*[1-9])\d+(?:\.\d+)?(?:[kmgtKMGT][iI]?)?(?:{_any_case(['bit', 'bps'])})"
    ),
    "SequenceNumber": either(
        {"type": "integer", "minimum": 0, "maximum": LARGEST},
        text(r"\s*(?:next(?:\s*[+-]\s*\d+)?|\d+)\s*"),
    ),
    "Timestamp": either(
        {"type": "integer", "minimum": 0, "maximum": LARGEST},
        text(r"\s*(?:last(?:\s*[+-]\s*\d+)?|\d+)\s*"),
    ),
    "Timestamps": either({"type": "boolean"}, ref("StampsPattern")),
    "Bytes": text(r"(?:[0-9A-Fa-f]{2}\s*)*"),
    "IcmpError": {"enum": [*ERRORS]},
    "CallsClaim": {
        "type": "object",
        "minProperties": 1,
        "patternProperties": {
            rf"^{NTH}(?:{'|'.join(VALUED)})(?!\S)": ref("Text"),
            rf"^{NTH}(?:{'|'.join(c for c in peer().CALLS if c not in VALUED)})(?!\S)":
                ref("CallOutcome"),
            REFERENCE.pattern: True,
        },
        "additionalProperties": False,
    },
    "CallOutcome": {"enum": [*CALL_OUTCOMES]},
    "Errno": {"enum": list(errnos.NAMES)},
    "ProcessClaim": either(
        {"enum": [*OUTCOMES]}, ref("ProcessPattern")
    ),
    "SocketsClaim": either(
        {"enum": ["none", ["none"]]},
        ref("State"),
        ref("SocketPattern"),
        {"type": "array", "items": either(ref("State"), ref("SocketPattern")), "minItems": 1},
    ),
    "PathClaim": {
        "type": "array",
        "items": either({"const": "closed"}, ref("ConnectionState")),
        "minItems": 1,
    },
    "LastedClaim": {
        "description": "a host and its state, for how long, and the tolerance",
        "type": "object",
        "required": ["for"],
        "properties": {"for": ref("Duration"), "tolerance": ref("Duration")},
        "propertyNames": ref("HostName"),
        "additionalProperties": ref("ConnectionState"),
        "if": {"required": ["tolerance"]},
        "then": {"minProperties": 3, "maxProperties": 3},
        "else": {"minProperties": 2, "maxProperties": 2},
    },
}  # fmt: skip
