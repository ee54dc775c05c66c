"""Whatever `ss` may print: it is read whole, or refused."""

import re
import time
from ipaddress import IPv4Address, IPv6Address

from hypothesis import example, given
from hypothesis import strategies as st

from labctl.probes.sockets import Address, Socket, SsParseError, State, Timer, parse_ss
from tests.unit.test_sockets import HEADER, LINE, sample

# Generated


def print_ms_timer(left: int, corrected: bool) -> tuple[str, float]:
    """What ss.c prints for `left` milliseconds, and the seconds that it has kept of them."""
    minutes, rest = divmod(left, 60_000)
    if minutes > 9:
        return f"{minutes}min", 60.0 * minutes
    seconds, fraction = divmod(rest, 1000)
    if minutes or seconds > 9 or (seconds and not fraction):
        text = (f"{minutes}min" if minutes else "") + (f"{seconds}sec" if seconds else "")
        return text, 60.0 * minutes + seconds
    if seconds:
        return f"{seconds}.{fraction:03}{'sec' if corrected else 'ms'}", rest / 1000
    return (f"{fraction:03}ms" if fraction else ""), rest / 1000


def words(exclude: str = "") -> st.SearchStrategy[str]:
    printable = st.characters(exclude_categories=("Z", "C"), exclude_characters=exclude)
    return st.text(printable, min_size=1, max_size=15)


HOSTS = (
    st.sampled_from(("*", "0.0.0.0", "::", "::ffff:127.0.0.11"))
    | st.integers(0, 2**32 - 1).map(IPv4Address).map(str)
    | st.integers(0, 2**128 - 1).map(IPv6Address).map(str)
)
ADDRESSES = st.builds(
    Address, HOSTS, st.none() | st.integers(1, 65535), st.none() | words(exclude=":/")
)
SPACES = st.integers(1, 30).map(" ".__mul__)


@st.composite
def rendered(draw: st.DrawFn) -> tuple[str, Socket]:
    """A socket, and its line or lines as `ss` pads, breaks and abbreviates them."""
    detailed = draw(st.booleans())
    uid = draw(st.sampled_from((0, 1000, 2**32 - 1))) if detailed else 0
    inode = draw(st.integers(0, 2**32 - 1)) if detailed else None
    details = [f"sk:{draw(st.integers(0, 2**64 - 1)):x}", *draw(st.lists(words(), max_size=3))]
    info = ["cubic", *draw(st.lists(words(), max_size=5))] if draw(st.booleans()) else []
    parts = [
        draw(st.sampled_from(State)),
        str(recv_q := draw(st.integers(0, 2**31 - 1))),
        str(send_q := draw(st.integers(0, 2**31 - 1))),
        str(local := draw(ADDRESSES)),
        str(remote := draw(ADDRESSES)),
    ]
    timer = None
    if draw(st.booleans()):
        near = st.integers(0, 11_000) | st.integers(0, 700_000) | st.integers(0, 2**32 - 1)
        text, expires = print_ms_timer(draw(near), draw(st.booleans()))
        name = draw(st.sampled_from(("on", "keepalive", "timewait", "persist", "unknown")))
        timer = Timer(name, expires, draw(st.integers(0, 255)))
        parts.append(f"timer:({name},{text},{timer.retrans})")
    if uid:
        parts.append(f"uid:{uid}")
    if detailed:
        parts += [f"ino:{inode}", *details]
    line = "".join(part + draw(SPACES) for part in parts)
    if draw(st.booleans()):
        line += " ".join(info)
    else:
        line = line.rstrip(" ") + "\n\t " + " ".join(info)
    line += draw(st.sampled_from(("", " " * 80)))
    folded = " ".join([*details, *info] if detailed else info)
    socket = Socket(State(parts[0]), recv_q, send_q, local, remote, timer, uid, inode, folded)
    return line, socket


@given(st.lists(rendered(), max_size=6), st.booleans(), st.sampled_from(("", "\n")))
def test_what_ss_prints_is_read_back(
    table: list[tuple[str, Socket]], header: bool, end: str
) -> None:
    text = (HEADER if header else "") + "\n".join(line for line, _ in table) + end
    assert parse_ss(text) == tuple(socket for _, socket in table)


@given(st.integers(0, 2**32 - 1))
def test_a_timer_is_never_further_off_than_it_prints(left: int) -> None:
    for corrected in (False, True):
        text, _ = print_ms_timer(left, corrected)
        (socket,) = parse_ss(f"{LINE} timer:(on,{text},0)")
        assert socket.timer is not None
        lost = left / 1000 - socket.timer.expires
        assert -1e-6 < lost < (60 if left >= 600_000 else 1 if left >= 10_000 else 0.001)


def lines_of_sockets(text: str) -> int:
    lines = [line for line in text.split("\n") if line]
    header = bool(lines) and re.match(r"\S*State +Recv-Q ", lines[0]) is not None
    return sum(not line.startswith((" ", "\t")) for line in lines) - header


def check_refused_or_whole(text: str) -> None:
    try:
        sockets = parse_ss(text)
    except SsParseError:
        return
    assert len(sockets) == lines_of_sockets(text)


GARBAGE = st.text() | st.text("ESTAB0 \n\t.:[]*%()timeruno,-")


@given(GARBAGE)
@example(f"{LINE} ino:{'9' * 5000}")
@example(f"ESTAB {'9' * 5000} 0 *:1 *:2")
@example("ESTAB 0 0 *:1 *:٣")
def test_garbage_is_refused(text: str) -> None:
    check_refused_or_whole(text)


@given(st.data())
def test_a_damaged_table_is_refused_or_read_whole(data: st.DataObject) -> None:
    lines = sample("6.1-tanoeim").split("\n")
    first = data.draw(st.integers(0, len(lines) - 3))
    text = "\n".join(lines[first : first + 3])
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 9, len(text))))
    check_refused_or_whole(text[:start] + data.draw(GARBAGE) + text[end:])


def test_what_a_full_table_takes_grows_linearly() -> None:
    """28,000 sockets in TIME-WAIT, every port of the default range, against an eighth of that."""
    row = "TIME-WAIT 0 0 127.0.0.1:{} 127.0.0.1:8000 timer:(timewait,{}sec,0) ino:0 sk:{:x}\n"

    def seconds(ports: range) -> float:
        text = HEADER + f"\t{'':300}\n".join(row.format(port, port % 60, port) for port in ports)
        spent = []
        for _ in range(5):
            start = time.process_time()
            sockets = parse_ss(text)
            spent.append(time.process_time() - start)
            assert len(sockets) == len(ports)
        return min(spent)

    assert seconds(range(32768, 60768)) < 20 * seconds(range(32768, 36268))
