"""Names for things that are shown side by side: a label is for people, and two cases may share one;
a name here belongs to one thing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence


def told_apart(things: Iterable[Sequence[str]]) -> list[str]:
    """A name for each thing: the first of its words. If others have that too, add those of the rest
    that distinguish it; if all are the same, a number."""
    words = list(things)
    names = [first for first, *_ in words]
    for more in range(1, max(map(len, words), default=1)):
        there = defaultdict(set)
        for name, thing in zip(names, words, strict=True):
            there[name].add(thing[more : more + 1])
        names = [
            f"{name}, {thing[more]}" if len(there[name]) > 1 and len(thing) > more else name
            for name, thing in zip(names, words, strict=True)
        ]
    taken = set(names)
    number: Counter[str] = Counter()
    for index, name in enumerate(names):
        number[name] += 1
        if number[name] == 1:
            continue
        while f"{name} #{number[name]}" in taken:
            number[name] += 1
        names[index] = f"{name} #{number[name]}"
        taken.add(names[index])
    return names
