"""What a lab is to consist of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from labctl.backends import HostSpec, ProcessSpec
from labctl.ground.data import dataclass


@dataclass(frozen=True)
class LabSpec:
    """What a lab consists of. `starts` are the processes that will be started, once for each time;
    `needs` its capabilities; `sysctls` the values for each host, and who asked for them
    (file:line)."""

    hosts: Sequence[HostSpec]
    processes: Mapping[str, ProcessSpec]
    starts: Sequence[str] = ()
    needs: frozenset[str] = frozenset()
    sysctls: Mapping[str, tuple[Mapping[str, str], str]] = field(default_factory=dict)
