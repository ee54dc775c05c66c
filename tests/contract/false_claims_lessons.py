"""False claims of the lessons (see test_false_claims)."""

from __future__ import annotations

from labctl.ground.resources import scenarios
from labctl.language.scenario import Scenario, load
from tests.contract.false_claims import FalseClaim


def flipped(case: Scenario) -> FalseClaim:
    """A row of the table of options, with its outcome turned round."""
    old, new, bind = case.variant["old"], case.variant["new"], case.variant["bind"]
    wrong = "ok" if bind == "EADDRINUSE" else "EADDRINUSE"
    row = f"{{old: {old}, new: {new}, bind: "
    return FalseClaim(
        "so_reuseaddr", f"{row}{bind}", f"{row}{wrong}", f"{new}: bind {wrong}",
        (("old", old), ("new", new)),
    )  # fmt: skip


OF_LESSONS = [
    FalseClaim(
        "four_segments",
        "client: close at eof}",
        "client: recv until eof; sleep 200ms; close}",
        "segments: 3 x segment since the first FIN",
        (("segments", 3),),
    ),
    FalseClaim(
        "four_segments",
        'count: "${segments}"',
        "count: 3",
        "segments: 3 x segment since the first FIN",
        (("data", False),),
    ),
    FalseClaim(
        "four_segments",
        "from: server, count: 2",
        "from: server, count: 1",
        "server: 1 x segment from server since the first FIN",
        (("data", False),),
    ),
    FalseClaim(
        "four_segments",
        'data: "${data}"',
        "data: false",
        "server: 1 x FIN not data from server",
        (("data", True), ("segments", 4)),
    ),
    FalseClaim(
        "four_segments",
        "flags: FIN, data: false",
        "flags: FIN, data: true",
        "client: 1 x FIN data from client",
        (("data", False),),
    ),
    # Wrong segments, and wrong times.
    FalseClaim(
        "eaddrinuse_time_wait",
        "{from: server, flags: FIN}",
        "{from: server, flags: FIN, count: 0}",
        "server: 0 x FIN from server",
    ),
    FalseClaim("eaddrinuse_time_wait", "{flags: RST, count: 0}", "{flags: RST}", "segments: RST"),
    # Wrong outcomes of a real program's calls.
    FalseClaim(
        "real_server",
        "call: {socket: ok, bind: EADDRINUSE}",
        "call: {socket: ok, bind: ok}",
        "server: exit 1, socket ok, bind ok",
        (("reuse", 0),),
    ),
    FalseClaim(
        "real_server",
        "call: {set: ok, bind: ok, listen: ok}",
        "call: {set: ok, bind: ok, listen: EADDRINUSE}",
        "server: running, set ok, bind ok, listen EADDRINUSE",
        (("reuse", 1),),
    ),
    FalseClaim(
        "eaddrinuse_time_wait",
        """\
  - wait: {sockets: {server: none}}
    since: closed
    within: 59s..63s            # 60 s, and what the kernel's coarse timers add
  - restart: server
  - wait: {sockets: {server: LISTEN}}

expect:
  - lasted: {server: TIME-WAIT, for: 60s, tolerance: 3s}
""",
        """\
  - sleep: 2s

expect:
  - lasted: {server: TIME-WAIT, for: 1s}
""",
        "server: TIME-WAIT for 1 s, give or take 0.5 s",
    ),
    FalseClaim(
        "process_end",
        "{from: server, flags: FIN}",
        "{from: server, flags: FIN, count: 0}",
        "server: 0 x FIN from server",
        (("end", "KILL"),),
    ),
    FalseClaim(
        "process_end", "{flags: RST, count: 0}", "{flags: RST}", "segments: RST", (("end", "exit"),)
    ),
    FalseClaim(
        "unread_data",
        "{from: server, flags: RST}",
        "{from: server, flags: RST, count: 0}",
        "server: 0 x RST from server",
        (("end", "KILL"),),
    ),
    FalseClaim(
        "unread_data",
        "{flags: FIN, count: 0}",
        "{flags: FIN}",
        "segments: FIN",
        (("end", "close"),),
    ),
    FalseClaim(
        "fin_wait_2",
        "{from: server, flags: FIN}",
        "{from: server, flags: FIN, count: 0}",
        "server: 0 x FIN from server",
    ),
    FalseClaim(
        "fin_wait_2",
        "{from: client, flags: FIN, count: 0}",
        "{from: client, flags: FIN}",
        "client: FIN from client",
    ),
    FalseClaim(
        "fin_wait_2",
        'for: "${fin_timeout}"',
        "for: 1s",
        "server: FIN-WAIT-2 for 1 s, give or take 2 s",
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "{from: server, flags: FIN, count: 0}",
        "{from: server, flags: FIN}",
        "server: FIN from server",
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "{from: client, flags: RST}",
        "{from: client, flags: FIN}",
        "client: FIN from client",
    ),
    FalseClaim(
        "state_walk",
        "server: [SYN-RECV, ESTAB, CLOSE-WAIT, LAST-ACK, closed]",
        "server: [SYN-RECV, ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT]",
        "server: SYN-RECV, ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT",
        (("way", "close"),),
    ),
    FalseClaim(
        "state_walk",
        "for: 0s, tolerance: 100ms",
        "for: 5s, tolerance: 100ms",
        "server: LAST-ACK for 5 s, give or take 0.1 s",
        (("way", "half"),),
    ),
    # Lost, late and forged segments that are not, or make no difference.
    FalseClaim(
        "lost_last_ack",
        "error: ECONNRESET}",
        "error: none}",
        "client: output 'error: none'",
        (("time_wait", "none"),),
    ),
    FalseClaim(
        "lost_last_ack",
        "drop: {from: server, to: client, flags: ACK, bare: true, count: 1}",
        "note: nothing is lost",
        "client: output 'error: none'",
        (("time_wait", "kept"),),
    ),
    FalseClaim(
        "old_duplicate",
        "reads: old data}",
        "reads: new data}",
        r"server: output 'read: old data\nread: new data\n'",
        (("late", "fits"),),
    ),
    FalseClaim(
        "old_duplicate", "buckets: 4096", "buckets: 0", "server: TIME-WAIT", (("late", "in time"),)
    ),
    FalseClaim(
        "time_wait_assassination",
        "{by: duplicate, tcp_rfc1337: 0,",
        "{by: duplicate, tcp_rfc1337: 1,",
        "server: no connection",
        (("by", "duplicate"), ("server", "none")),
    ),
    FalseClaim(
        "time_wait_assassination",
        "{by: rst, tcp_rfc1337: 1,",
        "{by: rst, tcp_rfc1337: 0,",
        "server: TIME-WAIT",
        (("by", "rst"), ("server", "TIME-WAIT")),
    ),
    FalseClaim(
        "time_wait_assassination",
        "inject: {from: client, to: server, flags: RST}",
        "inject: {from: client, to: server, flags: RST, seq: next-1}",
        "server: no connection",
        (("by", "rst"), ("server", "none")),
    ),
    FalseClaim(
        "time_wait_restarted",
        "inject: {from: client, to: server, flags: ACK}",
        "note: nothing",
        "server: no connection",
        (("segment", "ack"),),
    ),
    FalseClaim(
        "last_ack_retries",
        "retries: 3",
        "retries: 1",
        "server: no connection",
        (("within", "5s..12s"),),
    ),
    FalseClaim(
        "last_ack_retries",
        "  - cut: client\n",
        "",
        "server: LAST-ACK",
        (("retries", 1),),
    ),
    # Wrong states: the remainder of the connection is on the other side, or another one.
    FalseClaim(
        "eaddrinuse_time_wait",
        "{server: TIME-WAIT, client: none}",
        "{server: none, client: TIME-WAIT}",
        "client: TIME-WAIT",
    ),
    FalseClaim(
        "process_end",
        "{server: FIN-WAIT-2, client: CLOSE-WAIT}",
        "{server: none, client: none}",
        "client: no connection",
        (("end", "KILL"),),
    ),
    FalseClaim(
        "unread_data",
        "{server: none, client: none}",
        "{server: TIME-WAIT, client: none}",
        "server: TIME-WAIT",
        (("end", "close"),),
    ),
    FalseClaim(
        "fin_wait_2",
        "expect: {sockets: {server: FIN-WAIT-2",
        "expect: {sockets: {server: TIME-WAIT",
        "server: TIME-WAIT",
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "server: {state: FIN-WAIT-1,",
        "server: {state: FIN-WAIT-2,",
        "server: FIN-WAIT-2 send-q >0 timer persist",
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "{server: none, client: none}",
        "{server: TIME-WAIT, client: none}",
        "server: TIME-WAIT",
    ),
    FalseClaim(
        "time_wait_on_the_client",
        "{client: TIME-WAIT, server: none}",
        "{client: none, server: TIME-WAIT}",
        "server: TIME-WAIT",
    ),
    # Wrong queues, timers and counters.
    FalseClaim(
        "fin_wait_2_full_queue",
        "recv-q: 290961",
        "recv-q: 290960",
        "client: CLOSE-WAIT recv-q 290960",
    ),
    FalseClaim(
        "fin_wait_2_full_queue",
        "timer: timewait",
        "timer: persist",
        "server: FIN-WAIT-2 timer persist",
    ),
    FalseClaim(
        "unread_data",
        "TcpExtTCPAbortOnClose: 1",
        "TcpExtTCPAbortOnClose: 0",
        "server: TcpExtTCPAbortOnClose grew by 0",
        (("end", "KILL"),),
    ),
    # Wrong durations.
    FalseClaim(
        "eaddrinuse_time_wait", "within: 59s..63s", "within: 1s..3s", "server: no connection"
    ),
    FalseClaim("fin_wait_2", "fin_timeout: 5", "fin_timeout: 2", "server: no connection"),
    FalseClaim(
        "fin_wait_2_full_queue",
        "within: 4.5s..7s",
        "within: 500ms..1s",
        "server: no connection",
    ),
    # Wrong outcomes of calls and processes.
    FalseClaim(
        "eaddrinuse_time_wait",
        "{server: EADDRINUSE}",
        "{server: EADDRNOTAVAIL}",
        "server: EADDRNOTAVAIL",
    ),
    FalseClaim(
        "process_end",
        "{recv: ok}",
        "{recv: ECONNRESET}",
        "client: recv ECONNRESET",
        (("end", "TERM"),),
    ),
    FalseClaim(
        "process_end",
        "{server: {exit: 3}}",
        "{server: {exit: 0}}",
        "server: exit 0",
        (("end", "exit"),),
    ),
    FalseClaim(
        "process_end",
        "wait: {process: {server: {signal: KILL}}}",
        "wait: {process: {server: {signal: TERM}}}",
        "server: signal TERM",
        (("end", "KILL"),),
    ),
    FalseClaim(
        "unread_data",
        "{client: ECONNRESET}",
        "{client: {call: {recv: ok}}}",
        "client: recv ok",
        (("end", "close"),),
    ),
    FalseClaim(
        "two_addresses",
        "{first: EADDRINUSE}",
        "{first: {call: {bind: ok}}}",
        "first: bind ok",
    ),
    FalseClaim(
        "two_addresses",
        "{second: {call: {listen: ok}}}",
        "{second: EADDRINUSE}",
        "second: EADDRINUSE",
    ),
    FalseClaim(
        "time_wait_on_the_client",
        "{server: {call: {listen: ok}}}",
        "{server: EADDRINUSE}",
        "server: EADDRINUSE",
    ),
    FalseClaim(
        "same_address_twice",
        "bind: EADDRINUSE, later: EADDRINUSE",
        "bind: ok, later: EADDRINUSE",
        "second: bind ok",
        (("option", "SO_REUSEADDR 0"),),
    ),
    FalseClaim(
        "same_address_twice",
        "listen: EADDRINUSE",
        "listen: ok",
        "second: listen ok",
        (("option", "SO_REUSEADDR"),),
    ),
    FalseClaim(
        "same_address_twice",
        "bind: ok, later: EADDRINUSE",
        "bind: ok, later: ok",
        "second: bind ok",
        (("option", "SO_REUSEADDR"),),
    ),
    FalseClaim(
        "same_address_twice",
        "bind: ok, listen: ok",
        "bind: ok, listen: EADDRINUSE",
        "second: listen EADDRINUSE",
        (("option", "SO_REUSEPORT"),),
    ),
    *(flipped(case) for case in load(scenarios() / "so_reuseaddr.yaml")),
    # Options, users and addresses that are missing, or there where they should not be.
    FalseClaim(
        "eaddrinuse_time_wait",
        "bind 0.0.0.0:8000",
        "set SO_REUSEADDR; bind 0.0.0.0:8000",
        "server: EADDRINUSE",
    ),
    FalseClaim(
        "fin_wait_2", "bind :8000", "set SO_REUSEADDR; bind :8000", "server: EADDRINUSE"
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "bind :8000",
        "set SO_REUSEADDR; bind :8000",
        "server: EADDRINUSE",
    ),
    FalseClaim(
        "so_reuseaddr",
        "socket; set SO_REUSEADDR; bind",
        "socket; bind",
        "REUSEADDR: bind ok",
        (("old", "REUSEADDR"), ("new", "REUSEADDR")),
    ),
    FalseClaim(
        "child_keeps_port",
        "{reuseaddr: 1, bind: ok}",
        "{reuseaddr: 0, bind: ok}",
        "successor: bind ok",
        (("bind", "ok"),),
    ),
    FalseClaim(
        "child_keeps_port",
        "{reuseaddr: 0, bind: EADDRINUSE}",
        "{reuseaddr: 1, bind: EADDRINUSE}",
        "successor: bind EADDRINUSE",
        (("bind", "EADDRINUSE"),),
    ),
    FalseClaim(
        "same_address_twice",
        "option: SO_REUSEPORT,",
        "option: SO_REUSEADDR 0,",
        "second: bind ok",
        (("listen", "ok"),),
    ),
    FalseClaim("reuseport_other_user", "uid: 1002", "uid: 1001", "stranger: EADDRINUSE"),
    FalseClaim("reuseport_other_user", "set SO_REUSEPORT; ", "", "stranger: bind ok"),
    FalseClaim(
        "two_addresses", "bind server.2:8000", "bind server:8000", "server: 2 x LISTEN"
    ),
    FalseClaim(
        "two_addresses", "bind 0.0.0.0:8000", "bind 0.0.0.0:8001", "wildcard: EADDRINUSE"
    ),
    FalseClaim(
        "two_addresses", "connect server.2:8000", "connect server:8000", "second: accept ok"
    ),
    # Programs that behave otherwise.
    FalseClaim("eaddrinuse_time_wait", "recv until eof  ", "wait", "server: TIME-WAIT"),
    FalseClaim(
        "fin_wait_2",
        "wait                     #",
        "recv until eof; close #",
        "server: FIN-WAIT-2",
    ),
    FalseClaim(
        "fin_wait_2_full_queue",
        "4096 1048576 6291456",
        "4096 131072 131072",
        "client: ESTAB recv-q 290960",
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        'send "I am server" forever',
        'send "I am server"; wait',
        "server: ESTAB timer persist",
    ),
    FalseClaim(
        "unread_data",
        'send "I am client"',
        'send "I am"',
        "server: ESTAB recv-q 11",
        (("end", "close"),),
    ),
    FalseClaim(
        "child_keeps_port",
        "fork       ",
        "",
        "server: ESTAB and 0 x LISTEN",
        (("bind", "ok"),),
    ),
    FalseClaim(
        "child_keeps_port",
        'send "I am the child"',
        "",
        "client: ESTAB recv-q 14",
        (("bind", "EADDRINUSE"),),
    ),
    FalseClaim(
        "time_wait_on_the_client",
        'send "I am client"\n      close',
        'send "I am client"\n      wait',
        "client: TIME-WAIT",
    ),
]  # fmt: skip
