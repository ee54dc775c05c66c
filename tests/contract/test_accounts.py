"""What a failed run says of its processes, on every backend and in every report."""

from __future__ import annotations

import html
import re
from pathlib import Path

from labctl import reports
from labctl.judge import recorded
from tests.contract import real_backends
from tests.contract.test_lessons import played, report

TEXT = """\
title: Processes that end, each for a reason of its own
hosts:
  server:
    processes:
      missing: {run: python3 nosuch.py}
      typo: {run: pyton -m http.server}
      seven: {run: sh -c 'exit 7'}
  client:
    processes:
      home: {calls: "socket; connect localhost:8000"}
      waits: {calls: "socket; bind :9000; listen 1; accept"}
steps:
  - start: missing
  - start: typo
  - start: seven
  - start: home
  - start: waits
  - wait: {process: {missing: exited, typo: exited, seven: exited, home: exited}}
    within: 30s
  - wait: {sockets: {client: LISTEN}}
    within: 30s
  - wait: {sockets: {server: LISTEN, client: ESTAB}}
    within: 100ms
"""
WORDS = (
    r"missing on server exited with 2 at",
    r"can't open file .*nosuch\.py",
    r"typo on server exited with 127 at",
    r"cannot run pyton: No such file or directory",
    r"seven on server exited with 7 at",
    r"home on client exited with 111 at .*last failed: connect localhost:8000: ECONNREFUSED",
    r"waits on client runs, blocked in accept since \d",
)
WHY = (
    r"missing: a file is not .*nosuch\.py",
    r"typo: there is no program 'pyton'",
    r"seven: its program chose 7, and wrote nothing",
    r"home: localhost is client itself",
)


@real_backends
def test_each_names_its_cause(backend: str, tmp_path: Path) -> None:
    found = played(TEXT, backend, tmp_path)
    assert found.result == "fail", report(found)
    hung = [verdict for verdict in found.verdicts if verdict.result == "fail"]
    assert hung[0].actual.startswith(("missing on", "typo on", "seven on"))
    assert hung[1].actual.startswith("home on client exited with 111")
    for words in WHY:
        assert any(re.match(words, sentence) for sentence in found.why), (words, found.why)
    read = recorded.load(found.folder)
    for form in ("html", "junit", "markdown"):
        text = html.unescape(re.sub(r"<[^>]*>|\\", " ", reports.render(form, [read])))
        text = " ".join(text.split())  # words stand in lines of their own
        for words in WORDS:
            assert re.search(words, text), (form, words)
    picture = reports.render("ladder", [read])
    assert "✗ server: LISTEN" in picture
    assert "seven on server exited with 7 at" in picture


REFUSED = """\
title: A program that knocks at the wrong door
hosts:
  server: {run: python3 -u -m http.server 8000}
  client:
    run:
      - python3
      - "-c"
      - import socket; socket.create_connection(("server", 8080))
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
    within: 30s
  - start: client
  - wait: {process: {client: exited}}
    within: 30s
  - expect: {process: {client: ok}}
"""


@real_backends
def test_of_a_program_the_segments_tell_where_it_was_refused(backend: str, tmp_path: Path) -> None:
    found = played(REFUSED, backend, tmp_path)
    (verdict,) = (v for v in found.verdicts if v.result == "fail")
    assert [account.process for account in verdict.processes] == ["client", "server"]
    refused = "client: nothing listened at 8080 of server, which listens at :8000"
    assert refused in found.why, report(found)
