"""How results and states look, on terminals and in pages."""

from __future__ import annotations

from labctl.ground.data import dataclass


@dataclass(frozen=True)
class Look:
    """The sign of a result; its sign for GitHub, where text has no colour; its style on terminals
    (rich)."""

    sign: str
    emoji: str
    style: str


RESULTS = {
    "pass": Look("✓", "✅", "green"),
    "fail": Look("✗", "❌", "bold red"),
    "unknown": Look("?", "❔", "yellow"),
    "skip": Look("-", "➖", "cyan"),
    "error": Look("!", "❌", "bold red"),
}
OUTCOMES: dict[str | None, str] = {"done": "✓", "held": "✓", "skipped": "-"}
"""The sign of a step, if it is not `✗`."""


@dataclass(frozen=True)
class Colour:
    """A state's colour: on light and on dark pages, and the nearest style on terminals. If two
    states share a colour, pages draw one of them `striped`."""

    light: str
    dark: str
    style: str
    striped: bool = False


GREY, AMBER, GREEN = ("#8c929f", "#bec1c8"), ("#b58305", "#e2bf16"), ("#24a161", "#33865d")
TEAL, BLUE, PURPLE = ("#254758", "#4dc4fd"), ("#3131ff", "#4e48fe"), ("#b91aba", "#984d9c")
RED = "#881301", "#da3607"
STATES = {
    "LISTEN": Colour(*GREY, "cyan"),
    "SYN-SENT": Colour(*AMBER, "yellow"),
    "SYN-RECV": Colour(*AMBER, "yellow", striped=True),
    "ESTAB": Colour(*GREEN, "green"),
    "FIN-WAIT-1": Colour(*TEAL, "bright_blue"),
    "FIN-WAIT-2": Colour(*BLUE, "bold bright_blue"),
    "CLOSING": Colour(*TEAL, "bright_blue", striped=True),
    "TIME-WAIT": Colour(*PURPLE, "magenta"),
    "CLOSE-WAIT": Colour(*RED, "dark_orange"),
    "LAST-ACK": Colour(*RED, "dark_orange", striped=True),
}
"""They are as far apart as seven colours can be to people with any kind of colour blindness."""
GONE = Colour("", "", "dim")
"""For a socket that is gone, or in a state without a colour."""
