"""Wireshark's opinion on a run: its tshark reads the same captures, with none of our code.

Both say of each host's capture which segments there are, with their times, flags, numbers and
lengths; and, of those that the host sent itself, which repeat others. The view for that is the
sender's: where it arrives, a segment that repeats a lost one is the first.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from labctl.probes.observations import Known, Segment
from labctl.record.history import History

MISSING = None if shutil.which("tshark") else "tshark is not on the PATH: install tshark"
BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
AGAIN = (
    "tcp.analysis.retransmission",
    "tcp.analysis.fast_retransmission",  # after duplicate ACKs
    "tcp.analysis.spurious_retransmission",  # of what was acknowledged already
    "tcp.analysis.out_of_order",  # within 3 ms: overtaken, it thinks, but not on a sender's side
)
"""What tshark calls a segment with old numbers, by how it comes to be."""
FIELDS = (
    *("frame.time_epoch", "ip.src", "ipv6.src", "tcp.srcport", "ip.dst", "ipv6.dst", "tcp.dstport"),
    *("tcp.flags", "tcp.seq", "tcp.ack", "tcp.len", *AGAIN),
)


@dataclass(frozen=True, order=True)
class Frame:
    """A segment in one host's capture. `at` is in microseconds of the run; `again` is whether it
    repeats another, where the host sent it."""

    at: int
    source: str
    target: str
    flags: frozenset[str]
    seq: int
    ack: int
    length: int
    again: bool


def disagreements(history: History, folder: Path) -> list[str]:
    """What one of the two sees in a run's captures and the other does not, a line each. Routers see
    what is not theirs, and most of it twice. For tshark each SYN begins the numbers of an end anew,
    also one that somebody forged in the middle of a connection: those are left out."""
    assert history.lab
    origin = history.lab.epoch
    owners = {a: name.partition(".")[0] for name, a in history.lab.addresses.items()}
    segments = history.captures.segments(
        Known(owners, origin, named=bool(history.networks.hosts))
    ).segments
    forged = {frozenset((s.source, s.target)) for s in segments if "SYN" in s.flags and s.seq}

    def counted(frames: Iterator[Frame]) -> Counter[Frame]:
        return Counter(f for f in frames if frozenset((f.source, f.target)) not in forged)

    found = []
    routers = history.networks.routers
    for path in sorted(p for p in folder.glob("*.pcap") if p.stem not in routers):
        ours = counted(_ours(path.stem, segments))
        theirs = counted(_theirs(path, owners, origin))
        found += [f"{path.name}: labctl alone: {frame}" for frame in sorted(ours - theirs)]
        found += [f"{path.name}: tshark alone: {frame}" for frame in sorted(theirs - ours)]
    return found


def annotated(path: Path) -> list[tuple[str, str, frozenset[str], str]]:
    """The TCP segments of a pcapng: interface, sender by its name, flags, and comment. Raises
    CalledProcessError if tshark finds the file broken."""
    fields = ("frame.interface_name", "ip.src_host", "tcp.flags", "frame.comment")
    words = [word for name in fields for word in ("-e", name)]
    command = ["tshark", "-N", "n", "-r", str(path), "-Y", "tcp", "-T", "fields", *words]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for line in told.splitlines():
        interface, sender, flags, comment = line.split("\t")
        names = frozenset(name for name, bit in BITS.items() if int(flags, 16) & bit)
        found.append((interface, sender, names, comment))
    return found


def _ours(host: str, segments: Iterable[Segment]) -> Iterator[Frame]:
    for s in segments:
        at = s.t if s.sender == host else s.arrived if s.receiver == host else None
        if at is not None and s.source != s.target:  # of itself tshark sees one end
            yield Frame(
                round(at * 1e6), s.source, s.target, frozenset(s.flags), s.seq, s.ack, s.length,
                s.retransmitted and s.sender == host,
            )  # fmt: skip


def _theirs(path: Path, owners: Mapping[str, str], origin: float) -> Iterator[Frame]:
    fields = [word for name in FIELDS for word in ("-e", name)]
    command = ["tshark", "-n", "-r", str(path), "-Y", "tcp", "-T", "fields", *fields]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in told.splitlines():
        at, source, source6, sport, target, target6, dport, flags, *rest = line.split("\t")
        seq, ack, length, *again = rest
        if (source, source6, sport) == (target, target6, dport):
            continue
        seconds, _, nanoseconds = at.partition(".")
        yield Frame(
            round((int(seconds) + int(nanoseconds) / 1e9 - origin) * 1e6),
            f"{source}:{sport}" if source else f"[{source6}]:{sport}",
            f"{target}:{dport}" if target else f"[{target6}]:{dport}",
            frozenset(name for name, bit in BITS.items() if int(flags, 16) & bit),
            int(seq), int(ack), int(length),
            any(again) and _is_of(path.stem, source or source6, owners),
        )  # fmt: skip


def _is_of(host: str, address: str, owners: Mapping[str, str]) -> bool:
    """Whether a segment in a host's capture is its own: what is on its loopback is, too."""
    return ip_address(address).is_loopback or owners.get(address) == host
