"""What is not so, and must be found out: lessons with one thing changed (see test_lessons)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from labctl.ground.resources import catalogue, scenarios
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.language.steps import DEFAULT_WITHIN, Exec, Step
from labctl.language.values import Within
from labctl.record.history import History

SHORT = Within(0.0, 1.5)
"""How long a false claim is waited for: it never holds."""
PATIENT = Within(0.0, 5.0)
"""The same where the lesson is more patient than usual: it waits for programs."""


def whats(step: Step) -> list[str]:
    """What a step claims, as verdicts word it."""
    if isinstance(step, Exec) and (step.output is not None or step.status not in (None, "any")):
        return [finding.what for finding in step.judge(History())]
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
        "- kill: server",
        "- kill: client",
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

OF_CLIENTS = [
    FalseClaim(
        "clients/retries_idle_race",
        "for attempt in 1, 2:",
        "for attempt in (1,):",
        "client: output '(?s)^ok$.*^ok$'",
    ),
    FalseClaim(
        "clients/notices_dead_peer",
        ", timeout=1)",
        ")",
        "client: 0 x ESTAB peer server:8000",
    ),
    FalseClaim(
        "clients/closes_too",
        "if select.select(",
        "if False and select.select(",
        "client: 0 x CLOSE-WAIT peer server:8000",
        (("requests", 1),),
    ),
    FalseClaim(
        "clients/reuses_connection",
        "print('ok', flush=True)",
        "print('ok', flush=True); server.close()",
        "client: output '(?s)(^ok$.*){6}'",
    ),
    FalseClaim(
        "clients/survives_restart",
        "if server.sock and",
        "if False and",
        "server: awaiting, recv ok",
    ),
]
"""The same of clients."""

OF_PROXIES = [
    FalseClaim(
        "proxies/passes_half_close",
        "other[one].shutdown(socket.SHUT_WR)",
        "raise SystemExit",
        "client: recv ok, received >=2000",
    ),
    FalseClaim(
        "proxies/passes_resets",
        "struct.pack('ii', 1, 0)",
        "struct.pack('ii', 0, 0)",
        "client: recv ECONNRESET",
        (("resets", "server"),),
    ),
    FalseClaim(
        "proxies/keeps_idle",
        "select.select(reading, [], [])[0]",
        "select.select(reading, [], [], 0.5)[0] or exit()",
        "client: 2nd recv >0",
    ),
]
"""The same of proxies."""

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
