"""Signals by name, see signal(7). They are Linux's, where processes run, wherever the controller
runs. Real-time signals count from 34, as in glibc, which keeps two below that for itself."""

from __future__ import annotations

import re

RTMIN, RTMAX = 34, 64
NUMBERS = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
    "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16,
    "CHLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24,
    "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
}  # fmt: skip
NUMBERS |= {"RTMIN": RTMIN, "RTMAX": RTMAX}
USUAL = tuple(NUMBERS)
"""The signals that messages list."""
NUMBERS |= {f"RTMIN{n - RTMIN:+d}": n for n in range(RTMIN - 2, RTMAX) if n != RTMIN}
NAMES = {number: name for name, number in NUMBERS.items()}
FOR_REAL_TIME = re.compile(r"RT(?:MIN\+|MAX-)(\d{1,2})")


def parse(text: str) -> str | None:
    """The canonical name of a signal, without SIG: `TERM`, `sigterm` and `15` are TERM, and
    `RTMAX-1` is RTMIN+29. None if it is no signal."""
    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        return NAMES.get(int(name[:4]))
    if match := FOR_REAL_TIME.fullmatch(name):
        steps = int(match[1])
        return NAMES.get(RTMIN + steps if "+" in name else RTMAX - steps)
    return name if name in NUMBERS else None
