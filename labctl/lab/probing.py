"""Which probes watch all of a run, by what the agents say of their set-up."""

from __future__ import annotations

from collections.abc import Mapping

from labctl.backends.protocol import Ready

Place = Mapping[str, str | None]
"""See `Backend.environment`."""

_listed: dict[tuple[tuple[str, str | None], ...], bool] = {}


def is_known(place: Place) -> bool:
    """Whether a lab there has found out whether `ss` lists sockets that are only bound."""
    return tuple(place.items()) in _listed


def bound_listed(place: Place, ready: Mapping[str, Ready]) -> bool:
    """Whether it does: it and the kernel of the first host are those of all, and of later labs at
    the same place."""
    return _listed.setdefault(tuple(place.items()), next(iter(ready.values())).bound)


def probes(ready: Mapping[str, Ready], traced: bool, bound: bool = False) -> list[str]:
    """The probes that watch all of a run."""
    captured = all(answer.capture is None for answer in ready.values())
    return [
        "ss",
        *(["capture", "loopback"] if captured else []),
        *(["trace"] if traced else []),
        *(["bound"] if bound else []),
    ]
