"""ICMP errors about connections: their names here, in nftables, and on the wire."""

from __future__ import annotations

from labctl.ground.data import dataclass


@dataclass(frozen=True)
class Error:
    """An error's type and code (RFC 792, RFC 1812; for IPv6 RFC 4443), or None where there is none;
    and what nftables calls it, if it can answer so."""

    v4: tuple[int, int]
    v6: tuple[int, int] | None = None
    nft: tuple[str, str] | None = None

    @property
    def answer(self) -> list[str]:
        """The rules of nftables that answer so."""
        return [
            f"reject with {family} type {name}"
            for family, name in zip(("icmp", "icmpv6"), self.nft or (), strict=False)
        ]


ERRORS = {
    "net-unreachable": Error((3, 0), (1, 0), ("net-unreachable", "no-route")),
    "host-unreachable": Error((3, 1), (1, 3), ("host-unreachable", "addr-unreachable")),
    "protocol-unreachable": Error((3, 2), (4, 1)),
    "port-unreachable": Error((3, 3), (1, 4), ("port-unreachable", "port-unreachable")),
    "fragmentation-needed": Error((3, 4), (2, 0)),
    "source-route-failed": Error((3, 5)),
    "net-unknown": Error((3, 6)),
    "host-unknown": Error((3, 7)),
    "host-isolated": Error((3, 8)),
    "net-prohibited": Error((3, 9), None, ("net-prohibited", "admin-prohibited")),
    "host-prohibited": Error((3, 10), None, ("host-prohibited", "admin-prohibited")),
    "net-tos": Error((3, 11)),
    "host-tos": Error((3, 12)),
    "admin-prohibited": Error((3, 13), (1, 1), ("admin-prohibited", "admin-prohibited")),
    "host-precedence": Error((3, 14)),
    "precedence-cutoff": Error((3, 15)),
    "source-quench": Error((4, 0)),
    "time-exceeded": Error((11, 0), (3, 0)),
    "parameter-problem": Error((12, 0), (4, 0)),
}
RST = "rst"
ANSWERS = {RST: ["reject with tcp reset"], **{n: e.answer for n, e in ERRORS.items() if e.nft}}
"""How a host can refuse a segment, and the rules of nftables for that."""
