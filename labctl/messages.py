"""From what programs in the lab say to events; `t` is in seconds of the run by then."""

from __future__ import annotations

from labctl.backends import Message
from labctl.history import (
    CallEvent,
    Event,
    LossEvent,
    OutputEvent,
    ProcessEvent,
    SocketsEvent,
    TroubleEvent,
)
from labctl.probes.sockets import SsParseError

BY_PROCESS: dict[str, type[Event]] = {
    "process": ProcessEvent,
    "call": CallEvent,
    "output": OutputEvent,
}


def of_host(kind: str, t: float, host: str, message: Message) -> Event:
    """What an agent told of its host. Sockets that can't be understood are trouble."""
    if kind == "trouble":
        return TroubleEvent(t, host, **message)
    if kind == "loss":
        return LossEvent(t, host, **message)
    look = SocketsEvent(t, host, **message)
    try:
        _ = look.sockets
    except SsParseError as exc:
        return TroubleEvent(t, host, "ss", f"{exc}\n{look.text}")
    return look


def of_process(kind: str, t: float, process: str, host: str, message: Message) -> Event:
    """What a supervisor told of its process."""
    return BY_PROCESS[kind](t, **{**message, "process": process, "host": host})
