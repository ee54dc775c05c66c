"""False claims of the endings that cost days (see test_false_claims)."""

from __future__ import annotations

from tests.contract.false_claims import FalseClaim

OF_ENDINGS = [
    FalseClaim(
        "endings/idle_race",
        "call: {server: close}",
        "call: {server: shutdown wr}",  # it reads on
        "client: 2nd send ok, 2nd recv ECONNRESET",
        (("resets", 1),),
    ),
    FalseClaim(
        "endings/draining",
        "call: {server: close listener}",
        "call: {server: close}",
        "server: 0 x LISTEN",
        (("end", "drain"),),
    ),
    FalseClaim(
        "endings/draining",
        "kill: server",
        "call: {server: recv; close listener; close}",
        "old: recv ECONNRESET",
        (("end", "at once"),),
    ),
    FalseClaim(
        "endings/listener_closed",
        "migrate: 1,",
        "migrate: 0,",
        "one: recv ok",
        (("recv", "ok"),),
    ),
    FalseClaim(
        "endings/accept_queue_full",
        'tcp_abort_on_overflow: "${abort}"',
        "tcp_abort_on_overflow: 0",
        "client: ECONNRESET",
        (("resets", 1),),
    ),
    FalseClaim(
        "endings/cookie_lost",
        'tcp_syncookies: "${cookies}"',
        "tcp_syncookies: 1",
        "server: no connection",
        (("first", "client"),),
    ),
    FalseClaim(
        "endings/deferred_accept",
        "defer: 30,",
        "defer: 0,",
        "server: SYN-RECV",
        (("dropped", 1),),
    ),
    FalseClaim(
        "endings/fastopen_twice",
        "fastopen: 515,",
        "fastopen: 0,",
        "server: received 30",
        (("requests", 30),),
    ),
    FalseClaim(
        "endings/simultaneous_close",
        "inject: {from: client, to: server, flags: [FIN, ACK], seq: 1, ack: 1}",
        "inject: {from: client, to: server, flags: ACK, seq: 1, ack: 2}",
        "server: CLOSING",
    ),
    FalseClaim(
        "endings/simultaneous_open",
        "flags: [SYN, ACK], at_least: 1",
        "flags: [SYN, ACK], count: 0",
        "segments: 0 x SYN ACK",
    ),
    FalseClaim(
        "endings/self_connect",
        "reserved: 40000}",
        "reserved: 40001}",
        "client: ECONNREFUSED",
        (("ports", "40000 40001"),),
    ),
    FalseClaim(
        "endings/challenge_ack",
        "seq: next+100, ack: next, answers: 1}\n  - {flags: RST",
        "seq: next+1000000, ack: next, answers: 1}\n  - {flags: RST",
        "server: TcpExtTCPChallengeACK grew by 1",
        (("flags", "RST"), ("answers", 1)),
    ),
    FalseClaim(
        "endings/challenge_ack",
        "next-1000000",
        "next",
        "server: TcpExtTCPChallengeACK grew by 1",
        (("flags", "ACK"),),
    ),
    FalseClaim(
        "endings/crash_reboot",
        "call: {client: set SO_KEEPALIVE; ",
        "call: {client: set SO_KEEPALIVE 0; ",
        "client: recv ECONNRESET",
        (("client", "asks"),),
    ),
    FalseClaim(
        "endings/timeouts_apart",
        "keepalive: 0, user_timeout: 700, client: none",
        "keepalive: 1, user_timeout: 0, client: none",
        "client: no connection",
        (("says", "something"), ("client", "none")),
    ),
    FalseClaim(
        "endings/nat_invalid",
        "rule: accept, resets: 1",
        "rule: drop, resets: 1",
        "server: no connection",
        (("resets", 1),),
    ),
    FalseClaim(
        "endings/balancer_resets",
        "to: client, flags: data, with: rst",
        "to: client, flags: data, with: port-unreachable",
        "server: no connection",
    ),
    FalseClaim(
        "endings/linger_loses_answer",
        "linger: 1 0,",
        "linger: 0 0,",
        "client: recv ECONNRESET, received 0",
        (("received", 0),),
    ),
]  # fmt: skip
