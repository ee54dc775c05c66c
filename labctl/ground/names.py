"""What things are called where several are shown side by side: a label is for people, and two cases
may have the same; a name here is of one alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence


def told_apart(things: Iterable[Sequence[str]]) -> list[str]:
    """A name for each thing: the first of its words, and where others have that too, those of the
    rest that tell it from them; where all are the same, a number."""
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
