"""From messages of the programs in the lab to events; `t` of an event is in seconds of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from labctl.backends import protocol
from labctl.backends.wire import NoMessage, Said, quoted
from labctl.lab.clocks import NANO
from labctl.probes.listings import Listing
from labctl.probes.sockets import SsParseError
from labctl.record.events import (
    AddressEvent,
    CallEvent,
    CountersEvent,
    Event,
    FateEvent,
    HoldersEvent,
    LossEvent,
    OutputEvent,
    ProcessEvent,
    ResetEvent,
    SocketsEvent,
    StateEvent,
    TroubleEvent,
    UnseenEvent,
)
from labctl.record.history import History
from labctl.record.lines import shared

EVENTS: dict[type[Said], type[Event]] = {
    protocol.Sockets: SocketsEvent,
    protocol.Counters: CountersEvent,
    protocol.Loss: LossEvent,
    protocol.Address: AddressEvent,
    protocol.Trouble: TroubleEvent,
    protocol.State: StateEvent,
    protocol.Reset: ResetEvent,
    protocol.Fate: FateEvent,
    protocol.Process: ProcessEvent,
    protocol.Call: CallEvent,
    protocol.Unseen: UnseenEvent,
    protocol.Output: OutputEvent,
    protocol.Holders: HoldersEvent,
}
"""What to record of a message: its contents, and where it comes from."""


def happened(said: Said, t: float, history: History | None = None, /, **where: Any) -> Event:
    """The event at `t`. Sockets that can't be parsed are a trouble. With the history, a look at
    many sockets becomes the difference to the last one there."""
    found = shared(said.__dict__)
    if found.get("since") is not None:
        found["since"] = round(found["since"] + t - said.t, NANO)
    event = EVENTS[type(said)](**{**found, **where, "t": t})
    if isinstance(event, SocketsEvent):
        event = _shortened(event, history) if history else event
        try:
            _ = event.came
        except SsParseError as exc:
            return TroubleEvent(t, event.host, "ss", f"{exc}\n{event.text}")
    return event


def _shortened(event: SocketsEvent, history: History) -> SocketsEvent:
    listings: dict[str, Listing] = history.derived.setdefault("listings", (None, {}))[1]
    difference = listings.setdefault(event.host, Listing()).difference(event.t, event.text)
    if difference is None:
        return event
    text, gone = difference
    return replace(event, text=text, gone=gone)


def owner(state: protocol.State | protocol.Reset | protocol.Fate, owners: Mapping[str, str]) -> str:
    """The host of a socket, by its address. Raises NoMessage."""
    address = state.local.rpartition(":")[0].strip("[]")
    if address not in owners:
        raise NoMessage(f"a socket of no host: {quoted(state.local)}")
    return owners[address]


def uncaptured(answer: protocol.Flushed, t: float, host: str) -> Iterator[TroubleEvent]:
    """What a host's captures missed since the last time."""
    for probe, missed in (("capture", answer.dropped), ("loopback", answer.dropped_inside)):
        if missed:
            yield TroubleEvent(t, host, probe, f"{missed} packets were not captured")
