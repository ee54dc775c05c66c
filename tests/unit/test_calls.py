"""The language of calls, and the peer program that does them, on loopback."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labctl.ground.resources import images
from labctl.language.calls import CallError, each_of, host_of, parse_calls, peer
from labctl.language.steps import BLOCKING

PEER = images() / "peer" / "peer.py"


def numbers(*values: int) -> bytes:
    return struct.pack("i" * len(values), *values)


# The parser


CALLS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("socket", "socket", ("tcp",)),
    ("socket tcp", "socket", ("tcp",)),
    ("socket tcp6", "socket", ("tcp6",)),
    ("socket mptcp", "socket", ("mptcp",)),
    ("socket udp6 as a", "socket", ("udp6", "a")),
    ("socket as b-2", "socket", ("tcp", "b-2")),
    ("use a", "use", ("a",)),
    ("set SO_REUSEADDR", "set", ("SO_REUSEADDR", numbers(1))),
    ("set SO_REUSEPORT 0", "set", ("SO_REUSEPORT", numbers(0))),
    ("set SO_LINGER 1 0", "set", ("SO_LINGER", numbers(1, 0))),
    ("set SO_KEEPALIVE", "set", ("SO_KEEPALIVE", numbers(1))),
    ("set SO_RCVBUF 4096", "set", ("SO_RCVBUF", numbers(4096))),
    ("set TCP_LINGER2 -1", "set", ("TCP_LINGER2", numbers(-1))),
    ("set TCP_NODELAY", "set", ("TCP_NODELAY", numbers(1))),
    ("set TCP_USER_TIMEOUT 4294967295", "set", ("TCP_USER_TIMEOUT", numbers(-1))),
    ("set TCP_CONGESTION reno", "set", ("TCP_CONGESTION", b"reno")),
    ("set SO_RCVTIMEO 1.5s", "set", ("SO_RCVTIMEO", struct.pack("ll", 1, 500_000))),
    ("set SO_SNDTIMEO", "set", ("SO_SNDTIMEO", struct.pack("ll", 1, 0))),
    (
        "set IP_LOCAL_PORT_RANGE 4000 4001",
        "set",
        ("IP_LOCAL_PORT_RANGE", numbers(4000 | 4001 << 16)),
    ),
    ("set IPV6_V6ONLY 0", "set", ("IPV6_V6ONLY", numbers(0))),
    ("set TCP_FASTOPEN_CONNECT", "set", ("TCP_FASTOPEN_CONNECT", numbers(1))),
    ("set TCP_FASTOPEN_KEY 1 2 3 4", "set", ("TCP_FASTOPEN_KEY", numbers(1, 2, 3, 4))),
    ("set TCP_MD5SIG client key", "set", ("TCP_MD5SIG", ("client", b"key"))),
    ("get SO_ERROR", "get", ("SO_ERROR", "")),
    ("get TCP_INFO.tcpi_backoff", "get", ("TCP_INFO", "tcpi_backoff")),
    ("get SIOCINQ", "get", ("SIOCINQ", "")),
    ("nonblock", "nonblock", (True,)),
    ("nonblock off", "nonblock", (False,)),
    ("poll", "poll", (("in", "out"), None)),
    ("poll in", "poll", (("in",), None)),
    ("poll out 50ms", "poll", (("out",), 0.05)),
    ("poll 1s", "poll", (("in", "out"), 1.0)),
    ("bind :8000", "bind", ("", 8000)),
    ("bind server:0", "bind", ("server", 0)),
    ("bind server.2.v6:65535", "bind", ("server.2.v6", 65535)),
    ("bind [::]:8000", "bind", ("::", 8000)),
    ("bind []:8000", "bind", ("", 8000)),
    ('bind "198.18.0.2:8000"', "bind", ("198.18.0.2", 8000)),
    ("listen 20", "listen", (20,)),
    ("listen 0", "listen", (0,)),
    ("accept", "accept", ()),
    ("accept as c", "accept", ("c",)),
    ("connect server:8000", "connect", ("server", 8000)),
    ("connect none", "connect", ()),
    ("connect [fe80::1%eth0]:80", "connect", ("fe80::1%eth0", 80)),
    ('send "text"', "send", (b"text", 1, 0.0, None)),
    ("send 'text'", "send", (b"text", 1, 0.0, None)),
    ('send "text" x 24', "send", (b"text", 24, 0.0, None)),
    ('send "text" every 50ms forever', "send", (b"text", None, 0.05, None)),
    ('send "text" forever every 2m', "send", (b"text", None, 120.0, None)),
    ('send ""', "send", (b"", 1, 0.0, None)),
    ("send 5 bytes", "send", (b"xxxxx", None, 0.0, 5)),
    ('send "hi" fastopen server:80', "send", (b"hi", 1, 0.0, None, ("server", 80))),
    ("send 2 bytes fastopen [::1]:80", "send", (b"xx", None, 0.0, 2, ("::1", 80))),
    ("send 1000000000 bytes", "send", (b"x" * 65536, None, 0.0, 1_000_000_000)),
    ("recv", "recv", (None,)),
    ("recv 10", "recv", (10,)),
    ("recv until eof", "recv", ("eof",)),
    ("shutdown rd", "shutdown", ("rd",)),
    ("shutdown wr", "shutdown", ("wr",)),
    ("shutdown rdwr", "shutdown", ("rdwr",)),
    ("close", "close", ()),
    ("close listener", "close", ("listener",)),
    ("close at eof", "close", ("at eof",)),
    ("fork", "fork", ()),
    ("exec sleep 1h", "exec", (("sleep", "1h"),)),
    ("sleep 1.5", "sleep", (1.5,)),
    ("sleep 50ms", "sleep", (0.05,)),
    ("sleep 2min", "sleep", (120.0,)),
    ("sleep 1h", "sleep", (3600.0,)),
    ("wait", "wait", ()),
    ("exit", "exit", (0,)),
    ("exit 255", "exit", (255,)),
    ("return", "return", ()),
    ("await", "await", ()),
]


@pytest.mark.parametrize(("text", "name", "args"), CALLS)
def test_every_call(text: str, name: str, args: tuple[Any, ...]) -> None:
    (call,) = parse_calls(text)
    assert (call.name, call.args, call.tolerant, call.text, call.offset) == (
        name, args, False, text, 0
    )  # fmt: skip
    (tolerant,) = parse_calls(f"  {text}   || continue # a comment")
    assert (tolerant.name, tolerant.args, tolerant.tolerant) == (name, args, True)
    assert tolerant.text == f"{text}   || continue"


def test_every_call_is_tested() -> None:
    tested = {name for _, name, _ in CALLS} | {"repeat"}
    assert tested == set(peer().CALLS), "add a line to CALLS above"


def test_repeat_takes_the_rest_of_its_line() -> None:
    socket, repeat, close = parse_calls(
        "socket\nrepeat 3: bind :0; listen 1 || continue # twice; more\nclose"
    )
    assert (socket.text, close.text, close.offset) == ("socket", "close", 2)
    assert (repeat.name, repeat.offset, repeat.tolerant) == ("repeat", 1, False)
    assert repeat.text == "repeat 3: bind :0; listen 1 || continue"
    times, calls = repeat.args
    assert times == 3
    assert [(call.text, call.tolerant) for call in calls] == [
        ("bind :0", False), ("listen 1 || continue", True)
    ]  # fmt: skip
    assert [call.text for call in parse_calls("accept; repeat 2:; recv; close")[1].args[1]] == [
        "recv", "close"
    ]  # fmt: skip
    assert [call.name for call in each_of([socket, repeat, close])] == [
        "socket", "bind", "listen", "close"
    ]  # fmt: skip


def test_which_hosts_calls_name() -> None:
    calls = parse_calls(
        'bind a:1; connect b:2; connect none; send "x" fastopen c:3; set TCP_MD5SIG d k; send "x"; '
        "set SO_LINGER 1 0; bind :1"
    )
    assert [host_of(call) for call in calls] == ["a", "b", "", "c", "d", "", "", ""]


def test_each_call_is_done() -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import calls, program; "
    program += "assert calls.CALLS.keys() == program.DOES.keys()"
    subprocess.run([sys.executable, "-c", program, str(PEER.parent)], check=True)


def test_lines_and_statements() -> None:
    calls = parse_calls(
        "\n# a comment; close\n  socket;bind :80 ;; listen 5;\n\n\tsend 'a;b#c' x 2; close # end"
    )
    assert [(call.text, call.offset) for call in calls] == [
        ("socket", 2), ("bind :80", 2), ("listen 5", 2), ("send 'a;b#c' x 2", 4), ("close", 4)
    ]  # fmt: skip
    assert calls[3].args[0] == b"a;b#c"
    assert parse_calls("") == parse_calls("\n \n;;\n# nothing") == []


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (r'"a\nb\r\tc"', b"a\nb\r\tc"),
        (r'"\x00\xff\0"', "\0\xff\0".encode()),
        (r'"say \"hi\" \\ there"', b'say "hi" \\ there'),
        (r'"\q \x4 \"', None),
        (r"'no \n escapes'", rb"no \n escapes"),
        ('"it\'s"', b"it's"),
        ("'\"'", b'"'),
        ('"é→"', "é→".encode()),
        ('"# ; || continue"', b"# ; || continue"),
        (r'"\q"', rb"\q"),
    ],
)
def test_quotes(text: str, data: bytes | None) -> None:
    if data is None:
        with pytest.raises(CallError, match="a quotation mark is not closed"):
            parse_calls(f"send {text}")
    else:
        assert parse_calls(f"send {text}")[0].args[0] == data


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("socket\nlisen 5", 1, "unknown call 'lisen'; allowed: socket, use, set"),
        ("lisen 5", 0, "did you mean 'listen'?"),
        ("socket\n\nclose; accept 5", 2, "too many words; usage: accept"),
        ("|| continue", 0, "unknown call '||'"),
        ("recv || contniue", 0, "'contniue' is out of place; usage: recv"),
        ("recv||continue", 0, "unknown call 'recv||continue'"),
        ("send", 0, 'too few words; usage: send "TEXT"'),
        ("send text", 0, "the text must stand in quotation marks"),
        ('send "a" x', 0, "'x' is out of place"),
        ('send "a" x many', 0, "'many' is no number from 0 to 2147483647"),
        ('send "a" every now', 0, "'now' is no duration"),
        ("send ² bytes", 0, "'²' is no number"),
        ("send 99999999999999999999999 bytes", 0, "is no number"),
        ("recv -1", 0, "'-1' is no number"),
        ("recv until later", 0, "'later' is out of place"),
        ("listen", 0, "too few words; usage: listen N"),
        ("bind 8000", 0, "'8000' is no address; allowed: HOST:PORT, :PORT or [IPv6]:PORT"),
        ("bind :65536", 0, "port 0 to 65535"),
        ("bind :-1", 0, "is no address"),
        ("bind :²", 0, "is no address"),
        ("bind ::1:80", 0, "is no address"),
        ("connect server:http", 0, "is no address"),
        ("socket udpp", 0, "unknown kind of socket 'udpp'; allowed: tcp, tcp6"),
        ("socket udpp", 0, "did you mean 'udp'?"),
        ("socket tcp as", 0, "too few words; usage: socket"),
        ("socket tcp as a b", 0, "too many words; usage: socket"),
        ("socket tcp a", 0, "too many words; usage: socket"),
        ("socket as 1", 0, "'1' is no name of a socket"),
        ("accept it as a", 0, "too many words; usage: accept [as NAME]"),
        ("use", 0, "too few words; usage: use NAME"),
        ("get", 0, "too few words; usage: get OPTION"),
        ("get SO_EROR", 0, "did you mean 'SO_ERROR'?"),
        ("get TCP_INFO", 0, "unknown field of TCP_INFO ''"),
        ("get TCP_INFO.tcpi_bakoff", 0, "did you mean 'tcpi_backoff'?"),
        ("get SO_ERROR.tcpi_rtt", 0, "only TCP_INFO has fields"),
        ("nonblock on", 0, "'on' is out of place; usage: nonblock [off]"),
        ("poll in out", 0, "'out' is no duration"),
        ("poll 1s in", 0, "'1s' is out of place; usage: poll [in|out] [DURATION]"),
        ("poll both", 0, "'both' is no duration"),
        ("repeat: close", 0, "did you mean 'repeat'?"),
        ("repeat 3", 0, "a number and a colon are wanted here; usage: repeat N: CALL; CALL"),
        ("repeat 3 : close", 0, "a number and a colon are wanted here"),
        ("repeat x: close", 0, "'x' is no number from 0 to 100000"),
        ("repeat 3:", 0, "it repeats nothing"),
        ("\nrepeat 3: clsoe", 1, "did you mean 'close'?"),
        ("repeat 3: close; repeat 2: recv", 0, "a repeat can't stand in another"),
        ("exec", 0, "too few words; usage: exec COMMAND [ARG...]"),
        ('send "a" fastopen', 0, "'fastopen' is out of place"),
        ('send "a" fastopen server', 0, "'server' is no address"),
        ("set TCP_MD5SIG key", 0, "usage: set TCP_MD5SIG HOST KEY"),
        ("shutdown", 0, "too few words; usage: shutdown rd|wr|rdwr"),
        ("shutdown both", 0, "unknown direction 'both'; allowed: rd, wr, rdwr"),
        ("close socket", 0, "'socket' is out of place; usage: close [listener | at eof]"),
        ("sleep", 0, "usage: sleep DURATION"),
        ("sleep 1e9", 0, "'1e9' is no duration"),
        ("sleep 999999999999h", 0, "7 days at most"),
        ("exit 256", 0, "'256' is no number from 0 to 255"),
        ("set", 0, "usage: set OPTION [VALUE...]"),
        ("set REUSEADDR", 0, "unknown socket option 'REUSEADDR'"),
        ("set SO_REUSEADR", 0, "did you mean 'SO_REUSEADDR'?"),
        ("set SO_", 0, "unknown socket option 'SO_'"),
        ("set SO_REUSEADR", 0, "allowed: those of docs/options.md"),
        ("set SO_RCVBUF big", 0, "SO_RCVBUF wants whole numbers; got big"),
        ("set SO_RCVBUF 4294967296", 0, "SO_RCVBUF wants numbers of 32 bits"),
        ("set SO_LINGER 1", 0, "usage: set SO_LINGER ON SECONDS"),
        ("set TCP_CONGESTION", 0, "usage: set TCP_CONGESTION TEXT"),
        ("set SO_RCVTIMEO 9999999999h", 0, "7 days at most"),
        ('send "a', 0, 'a quotation mark is not closed: "a'),
        ("socket\nsend 'a\n'", 1, "a quotation mark is not closed: 'a"),
    ],
)
def test_mistakes(text: str, offset: int, message: str) -> None:
    with pytest.raises(CallError) as caught:
        parse_calls(text)
    assert caught.value.offset == offset
    assert message in str(caught.value)


PIECES = st.sampled_from(
    ["repeat 2: ", "as", "none", "fastopen", *peer().CALLS, " ", "\n", ";", "#", '"', "'",
     "\\", "|| continue", "x", "every", "forever",
     "bytes", "until eof", "SO_LINGER", "TCP_CONGESTION", "SO_RCVTIMEO", "IP_LOCAL_PORT_RANGE", "1",
     "0", "-1", "99999999999999999999", "²", "٣", ":80", "[::1]:80", "[", "]", "1s", "9999999999h",
     ".5", "\t", "\0", "\x85", "\ud800"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join))
@example("listen " + "9" * 5000)
@example('send "' + "\\" * 999 + '"')
def test_garbage(text: str) -> None:
    try:
        calls = parse_calls(text)
    except CallError as exc:
        assert 0 <= exc.offset <= text.count("\n")
        assert str(exc)
    else:
        assert all(call.name in peer().CALLS for call in calls)
        # What was understood is understood again, a call at a time: so `call` steps are sent.
        assert [(c.name, c.args, c.tolerant) for c in calls] == [
            (c.name, c.args, c.tolerant) for call in calls for c in parse_calls(call.text)
        ]


AT_ONCE = {
    "socket", "use", "set", "get", "nonblock", "bind", "listen", "shutdown", "exit",
    "return",
}  # fmt: skip


def test_which_calls_may_block() -> None:
    """A `call` step waits for those that do not."""
    known = BLOCKING | AT_ONCE
    assert {*peer().CALLS} == known, "a new call belongs into BLOCKING, or into AT_ONCE here"
    assert not BLOCKING & AT_ONCE
