"""The parser of `ss`: real output of four iproute2 versions, its format by hand, and generated.

data/ss/ holds what `ss -tanoei` of iproute2 5.10, 6.1 and 6.15 printed within the same second in
one private network namespace, whose loopback (and one veth) bore a socket in every state; the
variants (-tan, -O, -m, -H, ...) show a part of the same sockets. Dropped segments held the short
states open. data/ss/debian/ holds what those of Debian 11 (5.10), 12 (6.1), 13 (6.15) and sid (7.3)
printed within a second for an agent, which takes the blanks off the ends of lines.
"""

from collections import Counter
from pathlib import Path

import pytest

from labctl.probes.sockets import (
    Address,
    Socket,
    SsParseError,
    State,
    Timer,
    canonical,
    describe_socket,
    lab_sockets,
    parse_ss,
)

DATA = Path(__file__).parent / "data" / "ss"
VERSIONS = ("5.10", "6.1", "6.15")
HEADER = "State Recv-Q Send-Q Local Address:Port Peer Address:Port Process\n"
LINE = "ESTAB 0 0 10.0.0.1:80 10.0.0.2:4000"
ANY4 = Address("0.0.0.0", None)

Key = tuple[State, int, int, str, str]


def sample(name: str) -> str:
    return (DATA / f"iproute2-{name}.txt").read_text()


def key(socket: Socket) -> Key:
    return (socket.state, socket.recv_q, socket.send_q, str(socket.local), str(socket.remote))


def only(sockets: tuple[Socket, ...], state: State, local: str) -> Socket:
    (found,) = (s for s in sockets if s.state is state and str(s.local).endswith(local))
    return found


@pytest.fixture(params=VERSIONS)
def sockets(request: pytest.FixtureRequest) -> tuple[Socket, ...]:
    return parse_ss(sample(f"{request.param}-tanoei"))


# Real output


def test_every_socket_of_a_real_table_is_there(sockets: tuple[Socket, ...]) -> None:
    assert Counter(s.state for s in sockets if s.state is not State.UNCONN) == {
        State.LISTEN: 26,
        State.SYN_SENT: 2,
        State.SYN_RECV: 1,
        State.ESTAB: 35,
        State.FIN_WAIT_1: 3,
        State.FIN_WAIT_2: 4,
        State.CLOSE_WAIT: 3,
        State.CLOSING: 2,
        State.LAST_ACK: 1,
        State.TIME_WAIT: 3,
    }


def test_versions_agree_on_what_does_not_move() -> None:
    old, middle, new = (parse_ss(sample(f"{version}-tanoei")) for version in VERSIONS)
    assert Counter(map(key, old)) == Counter(map(key, middle))
    assert Counter(map(key, new)) - Counter(map(key, middle)) == {
        (State.UNCONN, 0, 0, "127.0.0.1:8045", "0.0.0.0:*"): 1,
        (State.UNCONN, 0, 0, "*:8046", "*:*"): 1,
    }


def test_versions_agree_on_a_timer_below_ten_seconds() -> None:
    """5.10 and 6.1 print 7.020ms and 7.028ms where 6.15 prints 7.012sec, 16 ms later."""
    left = []
    for version in VERSIONS:
        timer = only(parse_ss(sample(f"{version}-tanoei")), State.ESTAB, ":41006").timer
        assert timer is not None
        left.append(timer.expires)
    assert left == [7.020, 7.028, 7.012]


def test_listeners(sockets: tuple[Socket, ...]) -> None:
    queue = only(sockets, State.LISTEN, ":8008")
    assert (queue.recv_q, queue.send_q) == (1, 20)
    assert (queue.local, queue.remote) == (Address("127.0.0.1", 8008), ANY4)
    assert queue.timer is None
    assert only(sockets, State.LISTEN, ":8900").uid == 1000
    assert only(sockets, State.LISTEN, ":8002").local == Address("0.0.0.0", 8002, "eth0")
    assert only(sockets, State.LISTEN, ":8003").local == Address("*", 8003)
    assert only(sockets, State.LISTEN, ":8004").local == Address("::", 8004)
    assert only(sockets, State.LISTEN, ":8005").local == Address("*", 8005, "eth0")
    assert only(sockets, State.LISTEN, ":8006").local == Address("::1", 8006)
    assert only(sockets, State.LISTEN, ":8007").local == Address("fe80::1", 8007, "eth0")
    assert all(s.connection == (s.remote.port is not None) for s in sockets)


def test_connections(sockets: tuple[Socket, ...]) -> None:
    held, orphan = (only(sockets, State.FIN_WAIT_2, end) for end in (":41142", ":44876"))
    assert (held.inode, held.timer) == (42001, None)
    assert (orphan.inode, orphan.timer) == (0, Timer("timewait", 57.0, 0))
    longer = only(sockets, State.FIN_WAIT_2, ":49538")
    assert (longer.inode, longer.timer) == (0, Timer("keepalive", 38.0, 0))
    unread = only(sockets, State.CLOSE_WAIT, ":8020")
    assert (unread.recv_q, unread.inode, unread.timer) == (1235, 42002, None)
    stuck = only(sockets, State.ESTAB, ":44242")
    assert stuck.send_q == 2496512
    assert stuck.timer is not None
    assert (stuck.timer.name, stuck.timer.retrans) == ("persist", 0)
    dying = only(sockets, State.LAST_ACK, ":8041").timer
    assert dying is not None
    assert 1.0 < dying.expires < 1.2
    assert dying.retrans == 3
    mapped = only(sockets, State.TIME_WAIT, ":8011")
    assert mapped.local.host == "::ffff:127.0.0.1"
    assert mapped.local.unmapped == mapped.remote.unmapped == "127.0.0.1"
    assert mapped.timer == Timer("timewait", 58.0, 0)
    assert {s.uid for s in sockets} == {0, 1000}
    assert all(s.inode is not None for s in sockets)


def test_info_is_kept_and_folded(sockets: tuple[Socket, ...]) -> None:
    marked = only(sockets, State.ESTAB, ":44130")
    assert marked.info.startswith("sk:f6 fwmark:0x2a cgroup:/ <-> ts sack reno wscale:10,10 rto:")
    assert only(sockets, State.TIME_WAIT, "[::1]:49572").info == "sk:d0"


@pytest.mark.parametrize(
    "name", sorted(p.stem.removeprefix("iproute2-") for p in DATA.glob("*.txt"))
)
def test_variants_tell_of_the_same_sockets(name: str) -> None:
    full = {key(s): s for s in parse_ss(sample("6.15-tanoei"))}
    sockets = parse_ss(sample(name))
    options = name.partition("-")[2].removeprefix("tan")
    assert len(sockets) == (25 if options != "oei" else 82 if name.startswith("6.15") else 80)
    for socket in sockets:
        twin = full[key(socket)]
        assert socket.uid == (twin.uid if "e" in options else 0)
        assert socket.inode == (twin.inode if "e" in options else None)
        # ss(8)'s -e implies -o.
        assert (socket.timer is None) == (twin.timer is None or "e" not in options)
        assert ("skmem:(" in socket.info) == (
            "m" in options and "cgroup:" in twin.info  # minisockets have no memory of their own
        )
        if not options:
            assert socket.info == ""


@pytest.mark.parametrize("release", ["11", "12", "13"])
def test_releases_of_debian_tell_of_the_same_sockets(release: str) -> None:
    """Before 6.15, bound sockets are not listed; 7.3 leaves out the blanks that filled a column."""
    newest = parse_ss((DATA / "debian" / "sid.txt").read_text())
    found = parse_ss((DATA / "debian" / f"{release}.txt").read_text())
    assert Counter(s.state for s in newest) == {
        State.LISTEN: 8,
        State.UNCONN: 1,
        State.SYN_SENT: 1,
        State.ESTAB: 4,
        State.FIN_WAIT_2: 2,
        State.CLOSE_WAIT: 2,
        State.TIME_WAIT: 1,
    }
    listed = [s for s in newest if s.state is not State.UNCONN or release == "13"]
    assert list(map(key, found)) == list(map(key, listed))
    assert [(s.uid, s.inode) for s in found] == [(s.uid, s.inode) for s in listed]
    timers = [(s.timer.name, s.timer.retrans) if s.timer else None for s in listed]
    assert [(s.timer.name, s.timer.retrans) if s.timer else None for s in found] == timers
    assert [s.timer.expires for s in found if s.timer] == pytest.approx(
        [s.timer.expires for s in listed if s.timer], abs=1
    )


def test_an_empty_table() -> None:
    assert parse_ss("") == ()
    assert parse_ss(HEADER) == ()
    assert parse_ss("State Recv-Q Send-Q Local Address:Port Peer Address:PortProcess\n") == ()
    assert parse_ss("State Recv-Q Send-Q Local Address:Port Peer Address:Port\n") == ()


# Forms by hand


@pytest.mark.parametrize(
    ("printed", "expires"),
    [
        # print_ms_timer() of misc/ss.c: "%dmin" alone beyond nine minutes, with "%dsec" below,
        ("119min", 7140),
        ("71582min", 4294920),
        ("9min59sec", 599),
        ("1min5sec", 65),
        ("2min", 120),
        # "%dsec" alone from ten seconds on, or where no milliseconds are left,
        ("59sec", 59),
        ("1sec", 1),
        # "%d" "." "%03dms" before, and "%d" "." "%03dsec" after the format's correction,
        ("1.234ms", 1.234),
        ("7.500ms", 7.5),
        ("9.001sec", 9.001),
        # "%03dms" below a second, and nothing where the timer is due.
        ("200ms", 0.2),
        ("020ms", 0.02),
        ("001ms", 0.001),
        ("", 0),
        # No version writes a point without seconds; read as the rest, it can mean but this.
        (".968ms", 0.968),
        (".020ms", 0.02),
    ],
)
def test_timers(printed: str, expires: float) -> None:
    (socket,) = parse_ss(f"{LINE} timer:(on,{printed},2)\n")
    assert socket.timer == Timer("on", expires, 2)


@pytest.mark.parametrize(
    "tail",
    [
        "timer:(on,200ms)",
        "timer:(on,200ms,0",
        "timer:(on,ms,0)",
        "timer:(on,5,0)",
        "timer:(on,5hours,0)",
        "timer:(,5sec,0)",
        "timer:(on,1.234min,0)",
        "uid:x",
        "uid:1000x",
        "ino:",
        "ino:1 uid:0",
        "ino:12345678901",
        'users:(("nginx",pid=1,fd=3)) timer:(keepalive,119min,0)',
    ],
)
def test_a_damaged_part_does_not_pass_for_info(tail: str) -> None:
    with pytest.raises(SsParseError, match="line 2 of ss"):
        parse_ss(f"{HEADER}{LINE}   {tail}\n\t cubic\n{LINE}\n")


@pytest.mark.parametrize(
    "line",
    [
        "UNDEF 0 0 10.0.0.1:80 10.0.0.2:4000",  # sock_state_print(): "never returned by kernel"
        "estab 0 0 10.0.0.1:80 10.0.0.2:4000",
        "tcp ESTAB 0 0 10.0.0.1:80 10.0.0.2:4000",
        "0 0 10.0.0.1:80 10.0.0.2:4000",
        "ESTAB 0 10.0.0.1:80 10.0.0.2:4000",
        "ESTAB 0 0 10.0.0.1:http 10.0.0.2:4000",
        "ESTAB 0 0 10.0.0.1 10.0.0.2:4000",
        "ESTAB 0 0 10.0.0.1:80",
        "ESTAB 0 0 fe80::1:80 10.0.0.2:4000",
        "Cannot open netlink socket: Operation not permitted",
        HEADER.strip(),
    ],
)
def test_a_line_that_ss_does_not_print_is_named(line: str) -> None:
    with pytest.raises(SsParseError) as error:
        parse_ss(f"{HEADER}{LINE}\n\t cubic\n{line}\n{LINE}\n")
    assert str(error.value) == f"line 4 of ss is not understood: {line!r}"


def test_what_follows_no_socket_is_named() -> None:
    with pytest.raises(SsParseError, match="line 2"):
        parse_ss(f"{HEADER}\t cubic\n{LINE}\n")


def test_memory_and_options_stay_in_info() -> None:
    (socket,) = parse_ss(
        # sock_details_print() and inet_show_sock(), and "\n\tinet-sockopt: (" of --inet-sockopt
        f"{LINE} timer:(keepalive,1min59sec,0) uid:33 ino:77 sk:1f fwmark:0x1 "
        "cgroup:/a b/uid:0 v6only:0 <-> tos:0x8\n\tinet-sockopt: ( is_icsk)\n"
        "\t skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0) md5keys:10.0.0.2/32=x    \n"
    )
    assert (socket.uid, socket.inode) == (33, 77)
    assert socket.timer == Timer("keepalive", 119.0, 0)
    assert socket.info == (
        "sk:1f fwmark:0x1 cgroup:/a b/uid:0 v6only:0 <-> tos:0x8 inet-sockopt: ( is_icsk) "
        "skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0) md5keys:10.0.0.2/32=x"
    )


def test_a_queue_beyond_31_bits_is_printed_negative() -> None:
    """sock_state_print() writes the kernel's __u32 with %d."""
    (socket,) = parse_ss("UNCONN 0 -5 127.0.0.1:8045 0.0.0.0:*\n")
    assert socket.send_q == -5


# States


@pytest.mark.parametrize("state", State)
def test_a_state_in_any_spelling(state: State) -> None:
    for text in (state.value, state.name, f"TCP_{state.name}", state.replace("-", " ")):
        for spelling in (text, text.lower(), text.title(), text.replace("-", "").replace("_", "")):
            assert State.parse(spelling) is state


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("ESTABLISHED", State.ESTAB),
        ("SYN_RECEIVED", State.SYN_RECV),
        ("SYN-RCVD", State.SYN_RECV),
        ("TCP_NEW_SYN_RECV", State.SYN_RECV),
        ("fin_wait2", State.FIN_WAIT_2),
        ("timewait", State.TIME_WAIT),
        ("listening", State.LISTEN),
        ("unconnected", State.UNCONN),
        ("TCP_CLOSE", State.UNCONN),
        ("CLOSED", State.UNCONN),
    ],
)
def test_a_state_by_another_name(text: str, state: State) -> None:
    assert State.parse(text) is state


@pytest.mark.parametrize(
    ("text", "meant"),
    [("FIN_WAIT", "FIN-WAIT-2"), ("close_wiat", "CLOSE-WAIT"), ("ESTABLISH", "ESTAB")],
)
def test_no_state_but_nearly(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean {meant}\?") as error:
        State.parse(text)
    assert all(state in str(error.value) for state in (repr(text), *State))


@pytest.mark.parametrize("text", ["", "none", "TCP", "3"])
def test_no_state_at_all(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no TCP state.*LISTEN, SYN-SENT"):
        State.parse(text)


def test_a_closed_socket_is_neither_listener_nor_connection() -> None:
    kinds = {state: Socket(state, 0, 0, ANY4, ANY4) for state in State}
    assert [s for s, socket in kinds.items() if socket.is_listener] == [State.LISTEN]
    assert [s for s, socket in kinds.items() if not socket.connection] == [
        State.LISTEN,
        State.UNCONN,
    ]


# Addresses


def test_wildcards() -> None:
    assert all(Address(host, 80).wildcard for host in ("*", "0.0.0.0", "::"))
    assert not any(Address(host, 80).wildcard for host in ("::1", "10.0.0.0", "::ffff:0.0.0.1"))


def test_only_a_mapped_address_is_unmapped() -> None:
    hosts = ("10.0.0.1", "*", "::1", "::10.0.0.1", "::ffff:1", "::ffff:0:1")
    assert tuple(Address(host, None).unmapped for host in hosts) == hosts
    assert Address("::ffff:10.0.0.1", None).unmapped == "10.0.0.1"


def test_the_resolver_is_not_of_the_lab() -> None:
    table = parse_ss(
        "LISTEN 0 4096 127.0.0.11:37001 0.0.0.0:*\n"
        "ESTAB 0 0 127.0.0.1:49694 127.0.0.11:37002\n"
        "ESTAB 0 0 [::ffff:127.0.0.1]:49694 [::ffff:127.0.0.11]:37002\n"
        "LISTEN 0 4096 127.0.0.1:8000 0.0.0.0:*\n"
    )
    assert lab_sockets(table) == table[3:]


def test_the_resolver_of_a_real_table(sockets: tuple[Socket, ...]) -> None:
    gone = set(sockets) - set(lab_sockets(sockets))
    assert sorted(f"{s.state} {s.local.port}" for s in gone) == [
        "ESTAB 37002",
        "ESTAB 40218",
        "LISTEN 37001",
        "LISTEN 37002",
    ]


@pytest.mark.parametrize(
    ("host", "one"),
    [
        ("10.0.0.1", "10.0.0.1"), ("FD00:0::1", "fd00::1"), ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::", "::"), ("server", "server"), ("*", "*"), ("", ""),
    ],
)  # fmt: skip
def test_an_address_has_one_spelling(host: str, one: str) -> None:
    assert canonical(host) == one


@pytest.mark.parametrize(
    ("address", "end", "text"),
    [
        (Address("10.0.0.1", 80), "10.0.0.1:80", "10.0.0.1:80"),
        (Address("fd00::1", 80), "[fd00::1]:80", "[fd00::1]:80"),
        (Address("::ffff:10.0.0.1", 80), "10.0.0.1:80", "[::ffff:10.0.0.1]:80"),
        (Address("::", 80), ":80", "[::]:80"),
        (Address("*", None), ":None", "*:*"),
        (Address("fe80::1", 80, "eth0"), "[fe80::1]:80", "[fe80::1]%eth0:80"),
    ],
)
def test_an_end_as_segments_spell_it_and_as_ss_does(address: Address, end: str, text: str) -> None:
    assert (address.end, str(address)) == (end, text)


# Words


@pytest.mark.parametrize(
    ("line", "age", "words"),
    [
        (LINE, 0.0, "ESTAB 10.0.0.1:80 -> 10.0.0.2:4000"),
        ("ESTAB 3 0 10.0.0.1:80 10.0.0.2:4000", 0.0,
         "ESTAB 10.0.0.1:80 -> 10.0.0.2:4000, recv-q 3"),
        ("ESTAB 0 4 10.0.0.1:80 10.0.0.2:4000", 0.0,
         "ESTAB 10.0.0.1:80 -> 10.0.0.2:4000, send-q 4"),
        ("LISTEN 0 0 10.0.0.1:80 0.0.0.0:*", 0.0, "LISTEN 10.0.0.1:80, accept queue 0/0"),
        ("LISTEN 0 5 10.0.0.1:80 0.0.0.0:*", 0.0, "LISTEN 10.0.0.1:80, accept queue 0/5"),
        ("LISTEN 5 5 10.0.0.1:80 0.0.0.0:*", 0.0, "LISTEN 10.0.0.1:80, accept queue 5/5"),
        ("LISTEN 6 5 10.0.0.1:80 0.0.0.0:*", 0.0, "LISTEN 10.0.0.1:80, accept queue 6/5, full"),
        ("LISTEN 1 0 10.0.0.1:80 0.0.0.0:*", 0.0, "LISTEN 10.0.0.1:80, accept queue 1/0, full"),
        ("TIME-WAIT 0 0 10.0.0.1:80 10.0.0.2:4000 timer:(timewait,59sec,0)", 0.0,
         "TIME-WAIT 10.0.0.1:80 -> 10.0.0.2:4000, timewait timer 59.0 s left"),
        ("TIME-WAIT 0 0 10.0.0.1:80 10.0.0.2:4000 timer:(timewait,59sec,0)", 3.5,
         "TIME-WAIT 10.0.0.1:80 -> 10.0.0.2:4000, timewait timer 55.5 s left"),
        ("TIME-WAIT 0 0 10.0.0.1:80 10.0.0.2:4000 timer:(timewait,59sec,0)", 70.0,
         "TIME-WAIT 10.0.0.1:80 -> 10.0.0.2:4000, timewait timer 0.0 s left"),
    ],
)  # fmt: skip
def test_a_socket_in_words(line: str, age: float, words: str) -> None:
    (socket,) = parse_ss(line)
    assert describe_socket(socket, age) == words


def test_the_line_that_is_not_understood_is_counted_from_the_first() -> None:
    for text, number in ((f"{HEADER}{LINE}\nodd\n", 3), (f"{LINE}\nodd\n", 2), ("odd", 1)):
        with pytest.raises(SsParseError, match=rf"^line {number} of ss is not understood: 'odd'"):
            parse_ss(text)


def test_a_key_stands_before_everything_else() -> None:
    text = (
        "secretkey\\x01State  Recv-Q Send-Q Local Address:Port Peer Address:PortProcess\n"
        "LISTEN 0      5            0.0.0.0:8000      0.0.0.0:*    ino:39828558 sk:414ae cgroup:/\n"
        "\t bbr cwnd:10 md5keys:198.18.50.3/32=\n"
    )
    (listener,) = parse_ss(text)
    assert (listener.state, listener.local.port) == (State.LISTEN, 8000)
    with pytest.raises(SsParseError):
        parse_ss("secretkey\n" + text)
