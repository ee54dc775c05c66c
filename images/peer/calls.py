"""The calls of the peer program: their language. program.py says what each of them does.

Standard library only, Python 3.6 or later. The controller imports this module too, for `parse`.
"""

import collections
import errno
import re
import socket
import struct

from options import FIELDS, IOCTLS, TEXT_OPTIONS, TIME_OPTIONS, option, unknown

Call = collections.namedtuple("Call", "name args tolerant text offset")
"""One line: `tolerant` after `|| continue`; `offset` counts lines from the first, 0."""

Word = collections.namedtuple("Word", "text quoted")

TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|([^\s"\'#;][^\s;]*)')
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", '"': '"', "\\": "\\"}
NUMBER = re.compile(r"[0-9]{1,20}\Z")
DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|min|h)?\Z")
SECONDS = {"ms": 0.001, "s": 1, None: 1, "m": 60, "min": 60, "h": 3600}
LONGEST = 7 * 86400
INT_MAX = 0x7FFFFFFF
MOST_NUMBERS = 8  # of a value: TCP_FASTOPEN_KEY has two keys of four
READY = ("in", "out")
KINDS = collections.OrderedDict([
    ("tcp", (socket.AF_INET, socket.SOCK_STREAM, 0)),
    ("tcp6", (socket.AF_INET6, socket.SOCK_STREAM, 0)),
    ("mptcp", (socket.AF_INET, socket.SOCK_STREAM, 262)),
    ("mptcp6", (socket.AF_INET6, socket.SOCK_STREAM, 262)),
    ("udp", (socket.AF_INET, socket.SOCK_DGRAM, 0)),
    ("udp6", (socket.AF_INET6, socket.SOCK_DGRAM, 0)),
])  # fmt: skip
"""The kinds of sockets, as for socket(2); 262 is IPPROTO_MPTCP."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}\Z")
REPEAT = re.compile(r"repeat\s+(\S+):(?:\s+|\Z)")
MOST_TIMES = 100000
HOW = {"rd": socket.SHUT_RD, "wr": socket.SHUT_WR, "rdwr": socket.SHUT_RDWR}
# Linux has one number for both; socket calls fail with the latter (accept(2), setsockopt(2)).
ERRNOS = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}


class CallError(ValueError):
    """A line that is no call; `offset` is its number in the text, from 0 on."""

    def __init__(self, offset, message):
        super().__init__(message)
        self.offset = offset


def parse(text):
    """The calls of `text`, one a line or separated by `;`. Raises CallError at the first statement
    that is no call.
    """
    return [
        call
        for offset, line in enumerate(text.split("\n"))
        for call in _calls(list(statements(line, offset)), offset)
    ]


def _calls(statements, offset):
    """The calls of one line. `repeat` takes all that follows."""
    for number, (words, source) in enumerate(statements):
        if words[0].text == "repeat":
            yield _repeat(words, source, statements[number + 1 :], offset)
            return
        tolerant = [word.text for word in words[-2:]] == ["||", "continue"]
        if tolerant:
            words = words[:-2]
        try:
            name = words[0].text if words else "||"
            if name not in CALLS:
                raise ValueError(unknown("call", name, CALLS))
            args = CALLS[name].parse(words[1:])
        except ValueError as exc:
            raise CallError(offset, str(exc)) from None
        yield Call(name, args, tolerant, source, offset)


def _repeat(words, source, rest, offset):
    """`repeat N: CALL; CALL`; its arguments are N and these calls."""
    usage = "usage: " + CALLS["repeat"].usage
    match = REPEAT.match(source)
    if not match:
        raise CallError(offset, "a number and a colon are wanted here; " + usage)
    first, inner = words[2:], source[match.end() :]
    body = ([(first, inner)] if first else []) + rest
    try:
        times = _number(match.group(1), CALLS["repeat"].usage, MOST_TIMES)
    except ValueError as exc:
        raise CallError(offset, str(exc)) from None
    calls = tuple(call._replace(offset=0) for call in _calls(body, offset))
    if not calls or any(call.name == "repeat" for call in calls):
        what = "a repeat can't stand in another" if calls else "it repeats nothing"
        raise CallError(offset, "%s; %s" % (what, usage))
    text = "; ".join([source] + [source for _, source in rest])
    return Call("repeat", (times, calls), False, text, offset)


def statements(line, offset):
    """The statements of one line: pairs of words and text, without comments."""
    words, start, position = [], None, 0
    while position <= len(line):
        rest = line[position:]
        at_end = not rest or rest[0] in "#;"
        if at_end:
            if words:
                yield words, line[start:position].strip()
            words, start = [], None
            if not rest or rest[0] == "#":
                return
            position += 1
        elif rest[0].isspace():
            position += 1
        else:
            match = TOKEN.match(rest)
            if not match:
                raise CallError(offset, "a quotation mark is not closed: %s" % rest)
            double, single, plain = match.groups()
            if double is not None:
                word = Word(ESCAPE.sub(_unescape, double), True)
            else:
                word = Word(single, True) if single is not None else Word(plain, False)
            start = position if start is None else start
            words.append(word)
            position += match.end()


def _unescape(match):
    code = match.group(1)
    if code.startswith("x") and len(code) == 3:
        return chr(int(code[1:], 16))
    return ESCAPES.get(code, match.group(0))


def duration(text):
    """Seconds, from `50ms`, `1.5s`, `2m`, `1h` or a bare number of seconds."""
    match = DURATION.match(text)
    seconds = float(match.group(1)) * SECONDS[match.group(2)] if match else LONGEST + 1
    if seconds > LONGEST:
        raise ValueError("%r is no duration; allowed: 50ms, 1.5s, 2m, 7 days at most" % text)
    return seconds


def endpoint(text):
    """(host, port) from `HOST:PORT`, `:PORT` or `[IPV6]:PORT`; the host is '' for the wildcard."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    valid = ":" in text and NUMBER.match(port) and int(port) <= 65535
    if not valid or (":" in host and not bracketed):
        raise ValueError(
            "%r is no address; allowed: HOST:PORT, :PORT or [IPv6]:PORT, port 0 to 65535" % text
        )
    return host[1:-1] if bracketed else host, int(port)


def _plain(usage, low, high):
    """A parser for calls that take `low` to `high` plain words."""

    def check(words):
        if not low <= len(words) <= high:
            amount = "few" if len(words) < low else "many"
            raise ValueError("too %s words; usage: %s" % (amount, usage))
        return [word.text for word in words]

    return check


def _number(text, usage, high=INT_MAX):
    if not NUMBER.match(text) or int(text) > high:
        raise ValueError("%r is no number from 0 to %d; usage: %s" % (text, high, usage))
    return int(text)


def _parse_none(usage):
    check = _plain(usage, 0, 0)
    return lambda words: tuple(check(words))


def _named(words, usage, most):
    """Texts of at most so many words, and the name after them, if there is one: `... as NAME`."""
    texts = _plain(usage, 0, most + 2)(words)
    if "as" in texts:
        at = texts.index("as")
        texts, name = texts[:at], texts[at + 1 :]
        return texts, (_name("".join(name[:1])),) if len(name) == 1 else _plain(usage, 1, 0)(name)
    return _plain(usage, 0, most)(words), ()


def _name(text):
    if not NAME.match(text):
        raise ValueError("%r is no name of a socket; allowed: letters, digits, - and _" % text)
    return text


def _parse_socket(words):
    texts, name = _named(words, CALLS["socket"].usage, 1)
    kind = texts[0] if texts else "tcp"
    if kind not in KINDS:
        raise ValueError(unknown("kind of socket", kind, KINDS))
    return (kind, *name)


def _parse_accept(words):
    return _named(words, CALLS["accept"].usage, 0)[1]


def _parse_use(words):
    return (_name(_plain(CALLS["use"].usage, 1, 1)(words)[0]),)


def _parse_set(words):
    name, *values = _plain(CALLS["set"].usage, 1, 1 + MOST_NUMBERS)(words)
    option(name)
    if name == "TCP_MD5SIG":
        if len(values) != 2:
            raise ValueError("TCP_MD5SIG wants a peer and a key; usage: set TCP_MD5SIG HOST KEY")
        return (name, (values[0], values[1].encode()))
    if name in TEXT_OPTIONS:
        if len(values) != 1:
            raise ValueError("%s wants one text; usage: set %s TEXT" % (name, name))
        return (name, values[0].encode())
    if name in TIME_OPTIONS:
        seconds = duration(values[0]) if values else 1.0
        return (name, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))
    try:
        numbers = [int(value) for value in values or ["1"]]
    except ValueError:
        raise ValueError("%s wants whole numbers; got %s" % (name, " ".join(values))) from None
    if name == "IP_LOCAL_PORT_RANGE" and len(numbers) == 2:
        numbers = [numbers[0] | numbers[1] << 16]
    if name == "SO_LINGER" and len(numbers) != 2:
        raise ValueError("SO_LINGER wants two numbers; usage: set SO_LINGER ON SECONDS")
    if not all(-INT_MAX - 1 <= number <= 0xFFFFFFFF for number in numbers):
        raise ValueError("%s wants numbers of 32 bits; got %s" % (name, " ".join(values)))
    return (name, struct.pack("I" * len(numbers), *[n & 0xFFFFFFFF for n in numbers]))


def _parse_get(words):
    usage = CALLS["get"].usage
    name, dot, field = _plain(usage, 1, 1)(words)[0].partition(".")
    if name not in IOCTLS:
        option(name)
    if name == "TCP_INFO" and field not in FIELDS:
        raise ValueError(unknown("field of TCP_INFO", field, FIELDS))
    if name != "TCP_INFO" and dot:
        raise ValueError("only TCP_INFO has fields; usage: %s" % usage)
    return (name, field)


def _parse_nonblock(words):
    texts = _plain(CALLS["nonblock"].usage, 0, 1)(words)
    if texts not in ([], ["off"]):
        raise ValueError("%r is out of place; usage: %s" % (texts[0], CALLS["nonblock"].usage))
    return (not texts,)


def _parse_poll(words):
    texts = _plain(CALLS["poll"].usage, 0, 2)(words)
    wanted = (texts.pop(0),) if texts and texts[0] in READY else READY
    if len(texts) > 1:
        raise ValueError("%r is out of place; usage: %s" % (texts[0], CALLS["poll"].usage))
    return (wanted, duration(texts[0]) if texts else None)


def _parse_connect(words):
    text = _plain(CALLS["connect"].usage, 1, 1)(words)[0]
    return () if text == "none" else endpoint(text)


def _parse_exec(words):
    return (tuple(_plain(CALLS["exec"].usage, 1, len(words))(words)),)


def _parse_endpoint(usage):
    check = _plain(usage, 1, 1)
    return lambda words: endpoint(check(words)[0])


def _parse_count(usage, default, high=INT_MAX):
    check = _plain(usage, 0 if default is not None else 1, 1)

    def count(words):
        texts = check(words)
        return (_number(texts[0], usage, high) if texts else default,)

    return count


def _parse_send(words):
    usage = CALLS["send"].usage
    _plain(usage, 1, len(words))(words)
    to = ()
    if len(words) > 2 and words[-2] == Word("fastopen", False):
        words, to = words[:-2], (endpoint(words[-1].text),)
    if len(words) == 2 and words[1].text == "bytes" and not words[0].quoted:
        total = _number(words[0].text, usage)
        return (b"x" * min(total, 65536), None, 0.0, total, *to)
    if not words[0].quoted:
        raise ValueError("the text must stand in quotation marks; usage: %s" % usage)
    times, pause, rest = 1, 0.0, [word.text for word in words[1:]]
    while rest:
        word = rest.pop(0)
        if word == "forever":
            times = None
        elif word == "x" and rest:
            times = _number(rest.pop(0), usage)
        elif word == "every" and rest:
            pause = duration(rest.pop(0))
        else:
            raise ValueError("%r is out of place; usage: %s" % (word, usage))
    return (words[0].text.encode(), times, pause, None, *to)


def _parse_recv(words):
    texts = _plain(CALLS["recv"].usage, 0, 2)(words)
    if texts == ["until", "eof"]:
        return ("eof",)
    if len(texts) == 2:
        raise ValueError("%r is out of place; usage: %s" % (texts[1], CALLS["recv"].usage))
    return (_number(texts[0], CALLS["recv"].usage) if texts else None,)


def _parse_shutdown(words):
    (how,) = _plain(CALLS["shutdown"].usage, 1, 1)(words)
    if how not in HOW:
        raise ValueError("unknown direction %r; allowed: %s" % (how, ", ".join(HOW)))
    return (how,)


def _parse_close(words):
    which = " ".join(_plain(CALLS["close"].usage, 0, 2)(words))
    if which not in ("", "listener", "at eof"):
        raise ValueError("%r is out of place; usage: %s" % (which, CALLS["close"].usage))
    return (which,) if which else ()


def _parse_sleep(words):
    return (duration(_plain(CALLS["sleep"].usage, 1, 1)(words)[0]),)


Kind = collections.namedtuple("Kind", "usage parse")
"""One kind of call: how it is written, and what makes arguments of its words."""


def _kind(usage, parse=None, make=_parse_none, **options):
    return Kind(usage, parse or make(usage, **options))


CALLS = collections.OrderedDict(
    (kind.usage.split()[0], kind)
    for kind in [
        _kind("socket [tcp|tcp6|mptcp|mptcp6|udp|udp6] [as NAME]", _parse_socket),
        _kind("use NAME", _parse_use),
        _kind("set OPTION [VALUE...]", _parse_set),
        _kind("get OPTION | TCP_INFO.FIELD", _parse_get),
        _kind("nonblock [off]", _parse_nonblock),
        _kind("bind [HOST]:PORT", make=_parse_endpoint),
        _kind("listen N", make=_parse_count, default=None),
        _kind("accept [as NAME]", _parse_accept),
        _kind("connect HOST:PORT | none", _parse_connect),
        _kind("poll [in|out] [DURATION]", _parse_poll),
        _kind(
            'send "TEXT" [x N] [every DURATION] [forever] [fastopen HOST:PORT] | '
            "send N bytes [fastopen HOST:PORT]",
            _parse_send,
        ),
        _kind("recv [N | until eof]", _parse_recv),
        _kind("shutdown rd|wr|rdwr", _parse_shutdown),
        _kind("close [listener | at eof]", _parse_close),
        _kind("repeat N: CALL; CALL"),
        _kind("fork"),
        _kind("exec COMMAND [ARG...]", _parse_exec),
        _kind("sleep DURATION", _parse_sleep),
        _kind("wait"),
        _kind("exit [N]", make=_parse_count, default=0, high=255),
        _kind("return"),
        _kind("await"),
    ]
)
