"""TCP sockets as `ss` shows them: the only parser of `ss -tanoei`.

`ss` (iproute2, ss(8)) has no machine-readable output, and its columns grow with their contents. So
this reads a line by what `misc/ss.c` prints into it and never by position. The tests' data contain
samples of iproute2 5.10, 6.1, 6.15 and 7.3.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from sys import intern
from typing import Annotated, Self

from labctl.ground.data import dataclass
from labctl.ground.reading import Checked
from labctl.probes.holders import Holder, named

Ends = tuple[str, str]
"""The local and the remote end of a socket, in the spelling of segments; a listener's remote end is
empty."""
RESOLVER = "127.0.0.11"
"""Where a container engine's resolver listens, in the network namespace of each container."""


class State(StrEnum):
    """The states of RFC 9293, section 3.3.2, in the spelling of `ss`.

    UNCONN is CLOSED: a socket that is only bound (6.15 lists those, 6.1 does not). The kernel's
    NEW_SYN_RECV is not among them: inet_req_diag_fill() reports it as SYN-RECV.
    """

    LISTEN = "LISTEN"
    SYN_SENT = "SYN-SENT"
    SYN_RECV = "SYN-RECV"
    ESTAB = "ESTAB"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"
    UNCONN = "UNCONN"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The state that `text` means, in the spelling of the RFC, `ss`, netstat or the kernel.

        Case, hyphens, underscores and blanks do not count: `fin_wait2` is FIN-WAIT-2, and
        `TCP_CLOSE` is UNCONN.

        Raises ValueError for anything else, with the nearest state and the list of them.
        """
        known = {_plain(state): state for state in cls}
        known |= {alias: cls(state) for alias, state in _ALIASES.items()}
        word = _plain(text).removeprefix("TCP")
        if word in known:
            return known[word]
        near = get_close_matches(word, known, n=1)
        hint = f", did you mean {known[near[0]]}?" if near else ""
        raise ValueError(f"{text!r} is no TCP state{hint} (one of {', '.join(cls)})")


StateName = Annotated[str, Checked(lambda name: str(State(name)), enum=[*map(str, State)])]
"""A state, as a text that may come from anywhere."""

_STATES = {state.value: state for state in State}
_ALIASES = {
    "LISTENING": "LISTEN",
    "SYNRECEIVED": "SYN-RECV",
    "SYNRCVD": "SYN-RECV",
    "NEWSYNRECV": "SYN-RECV",
    "ESTABLISHED": "ESTAB",
    "CLOSED": "UNCONN",
    "CLOSE": "UNCONN",
    "UNCONNECTED": "UNCONN",
}
"""RFC 9293 (CLOSED), ss(8)'s filters, BSD's netstat and `enum` in the kernel's tcp_states.h."""


def _plain(text: str) -> str:
    return re.sub(r"[-_\s]", "", text).upper()


SPELLINGS = frozenset({*map(_plain, State), *_ALIASES})
"""Every spelling of a state, only in capital letters."""


@lru_cache(1 << 12)
def canonical(host: str) -> str:
    """The canonical spelling of an IP address: that of RFC 5952, and plain IPv4 for an IPv4-mapped
    one (RFC 4291, section 2.5.5.2). Anything else as it is."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a socket.

    `host` is numeric and without brackets, or `*` for an IPv6 wildcard that takes IPv4 as well.
    `port` is None if `ss` prints `*`. `interface` is the device that the socket is bound to, or
    that a link-local address belongs to; `ss` prints it only for the local end.
    """

    host: str
    port: int | None
    interface: str | None = None

    @property
    def unmapped(self) -> str:
        """`host`, an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) as plain IPv4."""
        return self.host.removeprefix("::ffff:") if "." in self.host else self.host

    @property
    def wildcard(self) -> bool:
        """Whether it stands for every address of the host."""
        return self.host in ("*", "0.0.0.0", "::")

    @property
    def end(self) -> str:
        """In the spelling of segments: `198.18.0.2:8000`; for a wildcard the port alone."""
        return _end(self)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        device = "" if self.interface is None else f"%{self.interface}"
        return f"{host}{device}:{'*' if self.port is None else self.port}"


@lru_cache(1 << 13)
def _end(address: Address) -> str:
    host = "" if address.wildcard else address.unmapped
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"


@dataclass(frozen=True, slots=True)
class Timer:
    """A socket's running timer, as ss(8) describes it under --options.

    `name` is on (retransmission), keepalive (also an orphan's FIN-WAIT-2, until 60 s remain),
    timewait (also those 60 s), persist or unknown. `expires` is in seconds from the moment of
    looking, rounded down: to a whole one from ten seconds on, to a whole minute from ten minutes
    on. `retrans` counts retransmissions, or the probes of a persist or keepalive timer.
    """

    name: str
    expires: float
    retrans: int


@dataclass(frozen=True, slots=True)
class Socket:
    """A TCP socket at one moment.

    `recv_q` and `send_q` are in octets; a listener's are the length of its accept queue and its
    limit. `uid` is 0 if `ss` does not print it: it leaves out root's, and TIME-WAIT and other
    minisockets have none. `inode` is 0 for a socket that no process holds, and None if `ss` ran
    without -e. `info` is the rest of the line, with blanks folded.
    """

    state: State
    recv_q: int
    send_q: int
    local: Address
    remote: Address
    timer: Timer | None = None
    uid: int = 0
    inode: int | None = None
    info: str = ""

    @property
    def is_listener(self) -> bool:
        """Whether it waits for connections."""
        return self.state is State.LISTEN

    @property
    def connection(self) -> bool:
        """Whether it belongs to a connection: neither listens nor is closed."""
        return self.state not in (State.LISTEN, State.UNCONN)

    @property
    def ends(self) -> Ends:
        """Its two ends."""
        return self.local.end, "" if self.is_listener else self.remote.end


class SsParseError(ValueError):
    """Text that `ss` does not print; the message names the line."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line} of ss is not understood: {text!r}")
        self.line, self.text = line, text


_ADDRESS = r"(\[[^]\s]+\]|[^][%:\s]+)(?:%([^:\s]+))?:(?:(\d{1,5})|\*)"
# print_ms_timer() writes 119min, 1min59sec, 59sec, 020ms, and nothing at all for 0. From one to ten
# seconds, 5.10 and 6.1 write 7.020ms for 7 s and 20 ms, and 6.15 writes 7.020sec: the point divides
# seconds from their fraction, whatever unit follows.
_EXPIRES = r"(?:(\d{1,5})min)?(?:(\d{1,2})sec|(\d?\.\d{3})(?:ms|sec)|(\d{3})ms)?"
_LEFT = re.compile(_EXPIRES, re.ASCII)
# The parts after the addresses come in this order (inet_show_sock(), sock_details_print()), each
# only with its option; the look-ahead keeps a damaged part from passing for info.
_SOCKET = re.compile(
    rf"({'|'.join(State)}) +(-?\d{{1,10}}) +(-?\d{{1,10}}) +{_ADDRESS} +{_ADDRESS}"
    rf"(?: +timer:\(([a-z]+),{_EXPIRES},(\d{{1,10}})\))?"
    r"(?: +uid:(\d{1,10}))?(?: +ino:(\d{1,10}))?"
    r"(?! *(?:users|timer|uid|ino):)((?:[ \t].*)?(?:\n[ \t].*)*)(?:\n+|\Z)",
    re.ASCII,
)
_HEADER = re.compile(r"\n*(?:\S*State +Recv-Q .*)?\n*")
"""`ss` prints the keys of TCP_MD5SIG at once, and so before everything else."""


def parse_ss(text: str) -> tuple[Socket, ...]:
    """The sockets in the output of `ss -tan`, in its order.

    Any of -o (timers), -e (timers, uid, inode), -i, -m, -O (one line for each) and -H (no header)
    may be there; -p (processes) may not.

    Raises SsParseError for a line that it can't parse; it never skips one.
    """
    sockets = []
    header = _HEADER.match(text)
    assert header  # nothing at all is one, too
    position = header.end()
    while position < len(text):
        found = _SOCKET.match(text, position)
        if found is None:
            number = text.count("\n", 0, position) + 1
            line = text[position:].split("\n", 1)[0]
            raise SsParseError(number, line)
        position = found.end()
        part = found.groups()
        state, recv_q, send_q = part[:3]
        uid, inode, info = part[15:]
        sockets.append(
            Socket(
                state=_STATES[state],
                recv_q=int(recv_q),
                send_q=int(send_q),
                local=_address(*part[3:6]),
                remote=_address(*part[6:9]),
                timer=_timer(part[9:15]) if part[9] else None,
                uid=int(uid or 0),
                inode=int(inode) if inode else None,
                info=" ".join(info.split()),
            )
        )
    return tuple(sockets)


# Thousands of sockets share few peers and timers, and each look has the addresses of the last one.
@lru_cache(1 << 13)
def _address(host: str, interface: str | None, port: str | None) -> Address:
    return Address(intern(host.strip("[]")), int(port) if port else None, interface)


@lru_cache(1 << 10)
def _timer(words: tuple[str, ...]) -> Timer:
    """A timer from its name, minutes, seconds, their fraction, milliseconds, and
    retransmissions."""
    name, *left, retrans = words
    return Timer(name, _left(*left), int(retrans))


def _left(minutes: str, seconds: str, fraction: str, milliseconds: str) -> float:
    whole = 60 * int(minutes or 0) + float(seconds or fraction or 0)
    return whole + int(milliseconds or 0) / 1000


@lru_cache(1 << 10)
def seconds_left(text: str) -> float | None:
    """How many seconds a timer has left, as `ss` writes it; None for other words."""
    found = _LEFT.fullmatch(text)
    return _left(*found.groups()) if found else None


def aged(socket: Socket, seconds: float) -> Socket:
    """A socket so much later, if only its time in TIME-WAIT went on."""
    timer = socket.timer
    if timer is None or timer.name != "timewait" or not seconds:
        return socket
    return replace(socket, timer=replace(timer, expires=max(0.0, timer.expires - seconds)))


def lab_sockets(sockets: Iterable[Socket]) -> tuple[Socket, ...]:
    """Those of `sockets` that belong to the lab: neither end is the engine's resolver."""
    return tuple(
        socket
        for socket in sockets
        if RESOLVER not in (socket.local.unmapped, socket.remote.unmapped)
    )


def describe_socket(socket: Socket, age: float = 0.0, holders: Sequence[Holder] = ()) -> str:
    """`TIME-WAIT 198.18.0.2:8000 -> 198.18.0.3:40312, timewait timer 59.3 s left`, `age` seconds
    after it was seen; `LISTEN 0.0.0.0:8000, accept queue 0/20, held by server (pid 2, nginx,
    fd 6)`."""
    text = f"{socket.state} {socket.local}"
    if socket.is_listener:
        text += f", accept queue {accept_queue(socket)}"
    else:
        text += f" -> {socket.remote}"
        if socket.recv_q:
            text += f", recv-q {socket.recv_q}"
        if socket.send_q:
            text += f", send-q {socket.send_q}"
    if socket.timer:
        text += f", {socket.timer.name} timer {max(0.0, socket.timer.expires - age):.1f} s left"
    return f"{text}, held by {named(holders)}" if holders else text


def accept_queue(socket: Socket) -> str:
    """`2/1, full`: how many connections of a listener wait to be accepted, and how many may. There
    is room for one more than that (sk_acceptq_is_full())."""
    full = ", full" if queue_is_full(socket) else ""
    return f"{socket.recv_q}/{socket.send_q}{full}"


def queue_is_full(socket: Socket) -> bool:
    """Whether a listener's accept queue takes no more."""
    return socket.recv_q > socket.send_q
