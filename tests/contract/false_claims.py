"""What is not so, and must be found out: lessons with one thing changed (see test_lessons)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from labctl.ground.resources import catalogue, scenarios
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.language.steps import DEFAULT_WITHIN, Step
from labctl.language.values import Within
from labctl.record.history import History

SHORT = Within(0.0, 1.5)
"""How long a false claim is waited for: it never holds."""
PATIENT = Within(0.0, 5.0)
"""The same where the lesson is more patient than usual: it waits for programs."""


def whats(step: Step) -> list[str]:
    """What a step claims, as verdicts word it."""
    return [finding.what for finding in step.claim.judge(History())] if step.claim else []


@dataclass(frozen=True)
class FalseClaim:
    """A lesson with `old` replaced by `new`, and the claim that then must fail, as verdicts word
    it. `variant` chooses the cases to run; without it there is one case."""

    lesson: str
    old: str
    new: str
    blamed: str
    variant: tuple[tuple[str, Any], ...] = ()

    @property
    def whole(self) -> Scenario:
        """The changed case."""
        file = catalogue(scenarios())[self.lesson]
        text = file.read_text("utf-8")
        assert self.old in text, f"{file.name} has no such text: {self.old}"
        text = text.replace(self.old, self.new)
        found = load_document(Document(str(file), text), text, file.stem, {})
        (case,) = (c for c in found if set(self.variant) <= set(c.variant.items()))
        return case

    @property
    def case(self) -> Scenario:
        """The same up to the blamed claim, which is not waited for as long as others."""
        case = self.whole
        steps = list(case.steps)
        blamed = [i for i, step in enumerate(steps) if self.blamed in whats(step)]
        if not blamed:
            return case  # a claim on the whole history
        for index in blamed:
            within = getattr(steps[index], "within", None)
            if isinstance(within, Within) and not within.low:
                shorter = SHORT if within == DEFAULT_WITHIN else PATIENT
                steps[index] = steps[index].model_copy(update={"within": shorter})
        return replace(case, steps=tuple(steps[: blamed[-1] + 1]), expect=(), expect_sources=())

    def __str__(self) -> str:
        words = re.sub(r"\s+", " ", self.new.strip()) or "nothing"
        return " ".join([self.lesson, *(str(value) for _, value in self.variant), words])


OF_THE_CATALOGUE = [
    FalseClaim(
        "syn_into_time_wait",
        "bind :40000   ",
        "bind :0",
        "server: LISTEN and ESTAB",
        (("timestamps", 1), ("listener", "back")),
    ),
    FalseClaim(
        "syn_into_time_wait",
        "bind :40000   ",
        "bind :0",
        "server: LISTEN and ESTAB",
        (("timestamps", 0),),
    ),
    FalseClaim(
        "syn_into_time_wait",
        "flags: SYN, since: again, count: 1",
        "flags: SYN, since: again, count: 2",
        "client: 2 x SYN from client since again",
        (("timestamps", 0),),
    ),
    FalseClaim(
        "syn_into_time_wait",
        "{client: ECONNREFUSED}",
        "{client: ok}",
        "client: ok",
        (("listener", "gone"),),
    ),
    FalseClaim(
        "time_wait_overflow",
        "{buckets: 0, kept: 0,",
        "{buckets: 2, kept: 0,",
        "server: 0 x TIME-WAIT and 0 x connection",
        (("kept", 0),),
    ),
    FalseClaim(
        "time_wait_overflow",
        "kept: 1, lost: 1,",
        "kept: 1, lost: 0,",
        "server: TcpExtTCPTimeWaitOverflow grew by 0",
        (("buckets", 1),),
    ),
    FalseClaim(
        "time_wait_overflow",
        "lost: 2, bind: ok",
        "lost: 2, bind: EADDRINUSE",
        "server: bind EADDRINUSE",
        (("buckets", 0),),
    ),
    FalseClaim(
        "tw_reuse",
        "{reuse: 0, connect: EADDRNOTAVAIL}",
        "{reuse: 0, connect: ok}",
        "second: connect ok",
        (("reuse", 0),),
    ),
    FalseClaim(
        "tw_reuse",
        "{reuse: 2, connect: EADDRNOTAVAIL}",
        "{reuse: 2, peer: server, connect: ok}",
        "second: connect ok",
        (("peer", "server"),),
    ),
    FalseClaim(
        "tw_reuse",
        "peer: 127.0.0.1, connect: ok",
        "peer: 127.0.0.1, connect: EADDRNOTAVAIL",
        "second: connect EADDRNOTAVAIL",
        (("peer", "127.0.0.1"),),
    ),
    FalseClaim(
        "tw_reuse",
        "{reuse: 1, connect: ok}",
        "{reuse: 1, delay: none, connect: EADDRNOTAVAIL}",
        "second: connect EADDRNOTAVAIL",
        (("delay", "none"),),
    ),
    FalseClaim(
        "tw_reuse",
        "timestamps: 0, connect: EADDRNOTAVAIL",
        "timestamps: 0, connect: ok",
        "second: connect ok",
        (("timestamps", 0),),
    ),
    FalseClaim(
        "tw_reuse",
        "delay: 60000, connect: EADDRNOTAVAIL",
        "delay: 60000, connect: ok",
        "second: connect ok",
        (("delay", 60000),),
    ),
    FalseClaim(
        "bound_port_again",
        "timestamps: 0, reuseaddr: 1, bind: ok, connect: EADDRNOTAVAIL",
        "timestamps: 0, reuseaddr: 1, bind: ok, connect: ok",
        "second: bind ok, connect ok",
        (("timestamps", 0),),
    ),
    FalseClaim(
        "bound_port_again",
        "bind: ok, connect: ok",
        "bind: ok, connect: EADDRNOTAVAIL",
        "second: bind ok, connect EADDRNOTAVAIL",
        (("timestamps", 1), ("bind", "ok")),
    ),
    FalseClaim(
        "bound_port_again",
        "{timestamps: 1, reuseaddr: 0,",
        "{timestamps: 1, reuseaddr: 1,",
        "second: bind EADDRINUSE",
        (("bind", "EADDRINUSE"),),
    ),
    FalseClaim(
        "fin_wait_2_for_ever",
        "end: shutdown wr",
        "end: close",
        "server: FIN-WAIT-2",
    ),
    FalseClaim(
        "fin_wait_2_for_ever",
        "tcp_fin_timeout: 1}",
        "tcp_fin_timeout: 60}",
        "server: no connection",
    ),
    FalseClaim(
        "fin_timeout_above_60",
        "{fin_timeout: 61,",
        "{fin_timeout: 60,",
        "server: FIN-WAIT-2 timer keepalive",
        (("fin_timeout", 60),),
    ),
    FalseClaim(
        "fin_timeout_above_60",
        "whole: 2s..3.5s",
        "whole: 500ms..1500ms",
        "server: no connection",
        (("fin_timeout", 61),),
    ),
    FalseClaim(
        "linger2",
        "{linger2: 1, lasts: 1s..2.7s",
        "{linger2: 3, lasts: 1s..2.7s",
        "server: no connection",
        (("lasts", "1s..2.7s"),),
    ),
    FalseClaim(
        "linger2",
        "{linger2: -1,",
        "{linger2: 0,",
        "server: no connection",
        (("client", "none"),),
    ),
    FalseClaim(
        "linger2",
        "rst: 1, client: none",
        "rst: 0, client: none",
        "server: 0 x RST from server",
        (("linger2", -1),),
    ),
    FalseClaim(
        "data_to_an_orphan",
        "{end: close, rst: 1, send: EPIPE}",
        "{end: shutdown wr, rst: 1, send: EPIPE}",
        "client: send EPIPE",
        (("send", "EPIPE"),),
    ),
    FalseClaim(
        "data_to_an_orphan",
        "{end: shutdown wr, rst: 0, send: ok}",
        "{end: close, rst: 0, send: ok}",
        "client: send ok",
        (("send", "ok"),),
    ),
    FalseClaim(
        "data_to_an_orphan",
        "{recv: ok}",
        "{recv: ECONNRESET}",
        "client: recv ECONNRESET",
        (("end", "close"),),
    ),
    FalseClaim(
        "syn_into_close_wait",
        "bind :40000",
        "bind :0",
        "server: LISTEN and ESTAB",
    ),
    FalseClaim(
        "syn_into_close_wait",
        "await                 # never closes",
        "recv until eof; close; await",
        "server: LISTEN and CLOSE-WAIT",
    ),
    FalseClaim(
        "syn_into_close_wait",
        "within: 900ms",
        "within: 900ms..3s",
        "client: connect ok",
    ),
    FalseClaim(
        "syn_into_close_wait",
        "flags: SYN, since: again, count: 2",
        "flags: SYN, since: again, count: 1",
        "client: 1 x SYN from client since again",
    ),
    FalseClaim(
        "syn_into_close_wait",
        "TcpExtTCPSYNChallenge: 1",
        "TcpExtTCPSYNChallenge: 0",
        "server: TcpExtTCPSYNChallenge grew by 0",
    ),
    FalseClaim(
        "linger_zero",
        "end: close, left: none",
        "end: close, left: TIME-WAIT",
        "server: TIME-WAIT",
        (("linger", "1 0"), ("end", "close")),
    ),
    FalseClaim(
        "linger_zero",
        "left: TIME-WAIT, recv: ok",
        "left: none, recv: ok",
        "server: no connection",
        (("recv", "ok"),),
    ),
    FalseClaim(
        "linger_zero",
        "end: KILL, left: none, recv: ECONNRESET",
        "end: KILL, left: none, recv: ok",
        "client: recv ok",
        (("end", "KILL"),),
    ),
    FalseClaim(
        "linger_zero",
        "TcpExtTCPAbortOnData: 1",
        "TcpExtTCPAbortOnData: 0",
        "server: TcpExtTCPAbortOnData grew by 0",
        (("end", "KILL"),),
    ),
    FalseClaim(
        "inherited_options",
        "listener: 0, then: nothing, bind: EADDRINUSE",
        "listener: 0, then: nothing, bind: ok",
        "new: bind ok",
        (("listener", 0), ("then", "nothing")),
    ),
    FalseClaim(
        "inherited_options",
        "listener: 1, then: nothing, bind: ok",
        "listener: 1, then: nothing, bind: EADDRINUSE",
        "new: bind EADDRINUSE",
        (("listener", 1), ("then", "nothing")),
    ),
    FalseClaim(
        "inherited_options",
        "listener: 0, then: set on the listener, bind: EADDRINUSE",
        "listener: 0, then: set on the listener, bind: ok",
        "new: bind ok",
        (("listener", 0), ("then", "set on the listener")),
    ),
    FalseClaim(
        "inherited_options",
        "listener: 0, then: set on the connection, bind: ok",
        "listener: 0, then: set on the connection, bind: EADDRINUSE",
        "new: bind EADDRINUSE",
        (("listener", 0), ("then", "set on the connection")),
    ),
    FalseClaim(
        "inherited_options",
        "listener: 1, then: cleared on the connection, bind: EADDRINUSE",
        "listener: 1, then: cleared on the connection, bind: ok",
        "new: bind ok",
        (("listener", 1), ("then", "cleared on the connection")),
    ),
    FalseClaim(
        "port_exhaustion",
        "one_more: {calls: socket; connect server:",
        "one_more: {calls: socket; connect server.2:",
        "one_more: EADDRNOTAVAIL",
    ),
    FalseClaim(
        "port_exhaustion",
        "other_server: {calls: socket; connect server.2:",
        "other_server: {calls: socket; connect server:",
        "other_server: ok",
    ),
    FalseClaim(
        "port_exhaustion",
        'bound: {calls: "socket; bind',
        'bound: {calls: "socket; set IP_BIND_ADDRESS_NO_PORT; bind',
        "bound: bind EADDRINUSE",
    ),
    FalseClaim(
        "port_exhaustion",
        "bind client.2:0",
        "bind client:0",
        "other_client: ok",
    ),
    FalseClaim(
        "port_exhaustion",
        "set: ok, connect: EADDRNOTAVAIL",
        "set: ok, connect: ok",
        "own_range: set ok, connect ok",
    ),
    FalseClaim(
        "port_exhaustion",
        "1024 65535",
        "40000 40009",
        "larger_range: ok",
    ),
    FalseClaim(
        "port_exhaustion",
        "tcp_tw_reuse: 1}",
        "tcp_tw_reuse: 0}",
        "reuse: ok",
    ),
    FalseClaim(
        "keepalive_dead_peer",
        "set SO_KEEPALIVE ${keepalive}",
        "set SO_KEEPALIVE 0",
        "server: no connection",
        (("keepalive", 1),),
    ),
    FalseClaim(
        "keepalive_dead_peer",
        "- cut: client",
        "- note: nothing",
        "server: no connection",
        (("keepalive", 1),),
    ),
    FalseClaim(
        "keepalive_dead_peer",
        "set SO_KEEPALIVE ${keepalive}",
        "set SO_KEEPALIVE",
        "server: CLOSE-WAIT",
        (("keepalive", 0),),
    ),
]

HTTP_SERVER = "default: python3 -m http.server ${port}"
NO_REUSEADDR = """default: python3 -c "from http.server import *;
        ThreadingHTTPServer.allow_reuse_address = 0;
        ThreadingHTTPServer(('', ${port}), SimpleHTTPRequestHandler).serve_forever()\""""
NO_ANSWER = """default: python3 -c "import socket; server = socket.create_server(('', ${port}));
        server.accept()[0].makefile('rb').read()\""""
NO_CLOSE = """default: python3 -c "import signal, socket;
        server = socket.create_server(('', ${port}));
        connection = server.accept()[0]; connection.recv(99); signal.pause()\""""

OF_SERVERS = [
    FalseClaim(
        "servers/restart_time_wait",
        HTTP_SERVER,
        NO_REUSEADDR,
        "server: LISTEN local :8000 and TIME-WAIT local :8000",
        (("end", "kill"),),
    ),
    FalseClaim(
        "servers/restart_time_wait",
        "recv until eof\n",
        "recv until eof\n      set SO_LINGER 1 0\n",  # so it resets what it closes
        "server: TIME-WAIT local :8000",
        (("end", "stop"),),
    ),
    FalseClaim(
        "servers/restart_client_never_closes",
        HTTP_SERVER,
        NO_REUSEADDR,
        "server: LISTEN local :8000 and FIN-WAIT-2 local :8000",
    ),
    FalseClaim(
        "servers/restart_client_never_closes",
        "wait                      #",
        "recv until eof; close #",
        "server: FIN-WAIT-2 local :8000",
    ),
    FalseClaim(
        "servers/client_vanishes",
        "keepalive_time: 1 ",
        "keepalive_time: 7200 ",
        "server: 0 x ESTAB local :8000",
    ),
    FalseClaim(
        "servers/client_vanishes",
        "SO_KEEPALIVE, 1)",
        "SO_KEEPALIVE, 0)",
        "server: 0 x ESTAB local :8000",
    ),
    FalseClaim("servers/half_close", HTTP_SERVER, NO_ANSWER, "client: recv ok, received >0"),
    FalseClaim(
        "servers/close_wait_leak",
        HTTP_SERVER,
        NO_CLOSE,
        "server: 0 x CLOSE-WAIT local :8000 and 0 x ESTAB local :8000",
        (("closes", "in_request"),),
    ),
    FalseClaim(
        "servers/graceful_stop",
        "connection.shutdown(socket.SHUT_RD)",
        "pass",
        "idle: recv ok",
        (("connection", "idle"),),
    ),
    FalseClaim(
        "servers/graceful_stop",
        "allow_reuse_address = True",
        "allow_reuse_address = daemon_threads = True",  # which nobody waits for
        "answering: recv ok, received >=4000000",
        (("connection", "answering"),),
    ),
]
"""Servers that do not do what a good one does."""

OF_HOURS = [
    FalseClaim(
        "hours/keepalive",
        "set SO_KEEPALIVE ${keepalive}",
        "set SO_KEEPALIVE 0",
        "server: no connection",
        (("keepalive", 1),),
    ),
    FalseClaim(
        "hours/keepalive",
        "set SO_KEEPALIVE ${keepalive}",
        "set SO_KEEPALIVE 1",
        "segments: 0 x segment since idle",
        (("keepalive", 0),),
    ),
    FalseClaim(
        "hours/retries2",
        "drop: {from: server, to: client}",
        "drop: {from: server, to: client, count: 5}",
        "server: no connection",
    ),
    FalseClaim(
        "hours/syn_retries",
        "drop: {from: client, to: server}",
        "drop: {from: client, to: server, count: 5}",
        "client: ETIMEDOUT",
    ),
    FalseClaim(
        "hours/orphan_retries",
        "  server:\n    calls",
        "  server:\n    sysctls: {net.ipv4.tcp_orphan_retries: 7}\n    calls",
        "server: no connection",
    ),
]
