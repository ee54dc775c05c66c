"""Steps of a scenario that is made of a record: waits, and which of its sockets a process means. A
record's calls name a descriptor, the language's have a current socket (docs/language.md, `use`)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from labctl.ground.data import dataclass
from labctl.judge.causes.descriptors import Descriptor
from labctl.probes.observations import Segment
from labctl.record.events import CallEvent

USUAL = 5.0
"""Seconds that a wait has if it says nothing."""
PAUSE = 0.3
"""Seconds without anything after which a step waits as long."""


@dataclass(frozen=True)
class Act:
    """A step at `t`; `of` is the process whose call it is, which was `done` then. The `last` one
    ends it. `does` is the call, if it acted on a socket that is known, `mine`."""

    t: float
    step: str
    of: str = ""
    done: float = 0.0
    last: bool = False
    does: str = ""
    mine: Descriptor | None = None


def call_step(process: str, text: str) -> str:
    """The step in which a process does a call."""
    return f"call: {{{process}: {json.dumps(text)}}}"


def bursts(data: Sequence[Segment]) -> Iterator[Sequence[Segment]]:
    """Rows of segments from one end without a pause."""
    starts = [
        n for n, s in enumerate(data)
        if n == 0 or s.source != data[n - 1].source or s.time - data[n - 1].time >= PAUSE
    ]  # fmt: skip
    for start, end in pairwise([*starts, len(data)]):
        yield data[start:end]


def had(event: CallEvent) -> list[str]:
    """The calls that make a listener which a process had before anybody saw its calls."""
    _, *words = event.call.split()
    if event.name != "has" or "listening" not in words or not event.local:
        return []
    options = (word.partition("=") for word in words if "=" in word)
    sets = [f"set {name} {value.replace(',', ' ')}" for name, _, value in options]
    return [
        f"socket {words[0]}",
        *sets,
        f"bind {event.local.replace('0.0.0.0:', ':')}",
        "listen 20",
    ]


def unblocked(acts: Sequence[Act]) -> list[Act]:
    """The acts in their order. An `accept` that waited while others of its process went on would
    keep them waiting now: it comes when it returned, or not at all."""
    busy: dict[str, list[float]] = defaultdict(list)
    for act in acts:
        busy[act.of].append(act.t)
    found = []
    for act in acts:
        waits = act.does.startswith("accept") and any(act.t < t < act.done for t in busy[act.of])
        if not waits:
            found.append(act)
        elif act.done < math.inf:
            found.append(replace(act, t=act.done))
    return sorted(found, key=lambda act: act.t)


def chosen(acts: Sequence[Act]) -> list[Act]:
    """The acts, each call on the socket that it means: a socket that is not the current one when a
    call means it gets a name, and `use` makes it current."""
    meant = {act.mine for act in _named(acts, {}) if act.does.startswith("use ")}
    names: dict[Descriptor, str] = {}
    for act in acts:
        if act.mine and act.mine in meant and act.mine not in names and _makes(act):
            names[act.mine] = f"s{len(names) + 1}"
    return [*_named(acts, names)]


def _makes(act: Act) -> bool:
    return act.does.split()[:1] in (["socket"], ["accept"])


def _named(acts: Sequence[Act], names: dict[Descriptor, str]) -> Iterator[Act]:
    """The acts, with each `use` that they need: of `names`, or of any that was made, without."""
    current: dict[str, Descriptor | None] = defaultdict(lambda: None)
    listener: dict[str, Descriptor | None] = defaultdict(lambda: None)
    made: set[Descriptor] = set()
    for act in acts:
        mine, of = act.mine, act.of
        if mine is None:
            yield act
            continue
        verb = act.does.partition(" ")[0]
        if _makes(act):
            made.add(mine)
            current[of] = mine
            name = f"{act.does} as {names[mine]}" if mine in names else act.does
            yield replace(act, step=call_step(of, name))
            continue
        if mine not in made:
            continue  # it was open before anybody saw its calls
        at_hand = listener if act.does == "close listener" else current
        if at_hand[of] is not mine:
            use = f"use {names.get(mine, '')}"
            yield Act(act.t, call_step(of, use), of, act.t, does=use, mine=mine)
            current[of] = mine
            listener[of] = mine if at_hand is listener else listener[of]
        yield act
        if verb == "listen":
            listener[of] = mine
        elif verb == "close":
            listener[of] = None if listener[of] is mine else listener[of]
            current[of] = listener[of] if current[of] is mine else current[of]


def wait_for(states: Mapping[str, Iterable[str]], took: float) -> str:
    """A wait for states, which took so many seconds at most."""
    words = {host: list(dict.fromkeys(each)) for host, each in states.items()}
    said = ", ".join(
        f"{host}: {'none' if not each else each[0] if len(each) == 1 else json.dumps(each)}"
        for host, each in words.items()
    )
    within = f"\n    within: {math.ceil(2 * took)}s" if took > USUAL / 2 else ""
    return f"wait: {{sockets: {{{said}}}}}{within}"
