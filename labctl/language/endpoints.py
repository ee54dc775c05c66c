"""Places: how a scenario writes the end of a connection, such as `server.2:8000`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from labctl.ground.data import dataclass
from labctl.ground.plain import shown
from labctl.language.values import problem, unknown
from labctl.probes.sockets import Address, canonical

PORT = re.compile(r"[1-9][0-9]{0,4}")
MOST = 65535
ANY = "*"
LOCALHOST = "localhost"
ALLOWED = (
    f"allowed: HOST, HOST:PORT, :PORT, 198.18.0.2:PORT, [fd00::2]:PORT, a port from 1 to {MOST} "
    "and no zeros that are not needed"
)
LISTENS_FOR_ALL = {"::": ("::", "*"), ANY: ("::", "*", "0.0.0.0")}
"""How `ss` shows sockets that are bound to all addresses: `*` is `::` that takes IPv4 as well."""


@dataclass(frozen=True)
class Endpoint:
    """Some addresses and a port, or all ports; `text` is how it was written.

    `host` is a name of the lab, an address in its canonical spelling, `*` for a wildcard, or empty
    for every address. `port` is `*` if a socket has none."""

    text: str
    host: str
    port: str

    def covers(self, address: Address, known: set[str]) -> bool:
        """Whether an end of a socket is at this place; `known` are the addresses of `host`."""
        if self.port and self.port != str(ANY if address.port is None else address.port):
            return False
        here = canonical(address.host)
        if self.host in LISTENS_FOR_ALL:
            return here in LISTENS_FOR_ALL[self.host]
        return not self.host or here == self.host or here in known

    def __str__(self) -> str:
        return self.text


def parse_port(text: str) -> int | None:
    """A port as people write it; None if no segment can have it."""
    return int(text) if PORT.fullmatch(text) and int(text) <= MOST else None


def parse_endpoint(value: object, places: Iterable[str]) -> Endpoint:
    """A place, if need be by one of these names. Raises what `problem` makes if nothing can match
    it."""
    text = value if isinstance(value, str) else ""
    host, port, brackets = text, None, True  # an IPv6 address without a port
    if text.count(":") < 2 or text.startswith("["):
        match = re.fullmatch(r"(?:\[([^]]*)\]|([^:\[\]]*))(?::([^:]*))?", text)
        if not match or match[0] in ("", "[]"):
            raise problem(f"{shown(value)} is no place; {ALLOWED}")
        host, port, brackets = match[1] or match[2] or "", match[3], match[1] is not None
    if port not in (None, ANY) and parse_port(port) is None:
        raise problem(f"{shown(value)} has no port that there is; {ALLOWED}")
    if brackets or _digits(host):
        if (":" in host) != brackets or "%" in host or not _is_address(host):
            raise problem(f"{shown(value)} has no address that there is; {ALLOWED}")
        host = canonical(host)
    known = [*places, LOCALHOST]
    if host not in ("", ANY, *known) and not _is_address(host):
        raise problem(unknown("host", host, known))
    return Endpoint(text, host, port or "")


def _digits(host: str) -> bool:
    return bool(host) and not host.strip("0123456789.")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
