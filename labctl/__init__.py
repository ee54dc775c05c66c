"""labctl: a lab for TCP connections that end badly."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labctl.ground.errors import (
        LabctlError,
        LabError,
        MissingHere,
        Mistake,
        Refused,
        ScenarioError,
        Unavailable,
        UsageError,
    )
    from labctl.judge.accounts import Account
    from labctl.judge.check import NotKnown, NotPassed, Verdict
    from labctl.probes.observations import Segment
    from labctl.probes.sockets import Address, Socket, State, Timer
    from labctl.record.events import (
        AddressEvent,
        CallEvent,
        CaptureEvent,
        ClockEvent,
        CountersEvent,
        Event,
        ExecEvent,
        FateEvent,
        HoldersEvent,
        InjectEvent,
        LabEvent,
        LossEvent,
        NetEvent,
        OutputEvent,
        ProcessEvent,
        ResetEvent,
        SocketsEvent,
        StateEvent,
        StepEvent,
        TallyEvent,
        TroubleEvent,
        UnseenEvent,
    )
    from labctl.testing.lab import Lab
    from labctl.testing.strategy import socket_state
    from labctl.testing.watch import Watch, watch

    __version__: str

__all__ = [
    "Account",
    "Address",
    "AddressEvent",
    "CallEvent",
    "CaptureEvent",
    "ClockEvent",
    "CountersEvent",
    "Event",
    "ExecEvent",
    "FateEvent",
    "HoldersEvent",
    "InjectEvent",
    "Lab",
    "LabError",
    "LabEvent",
    "LabctlError",
    "LossEvent",
    "MissingHere",
    "Mistake",
    "NetEvent",
    "NotKnown",
    "NotPassed",
    "OutputEvent",
    "ProcessEvent",
    "Refused",
    "ResetEvent",
    "ScenarioError",
    "Segment",
    "Socket",
    "SocketsEvent",
    "State",
    "StateEvent",
    "StepEvent",
    "TallyEvent",
    "Timer",
    "TroubleEvent",
    "Unavailable",
    "UnseenEvent",
    "UsageError",
    "Verdict",
    "Watch",
    "__version__",
    "socket_state",
    "watch",
]

_ROOMS = (
    "labctl.ground.errors",
    "labctl.probes.sockets",
    "labctl.probes.observations",
    "labctl.record.events",
    "labctl.judge.check",
    "labctl.testing.lab",
    "labctl.testing.watch",
    "labctl.testing.strategy",
)
"""Where these names are. Modules that take long to import come last."""


if not TYPE_CHECKING:  # or every name would exist for it

    def __getattr__(name: str) -> Any:
        """A public name, imported when somebody uses it: `labctl --help` must be quick."""
        if name == "__version__":
            return import_module("labctl.ground.installed").version()
        for room in _ROOMS if name in __all__ else ():
            module = import_module(room)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module 'labctl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
