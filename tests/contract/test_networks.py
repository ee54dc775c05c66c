"""Hosts in several networks reach each other through routers, and are seen to: on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import real_backends
from tests.contract.test_faults import HOSTS, V4, V6, passes, run

STEPS = """\
  - drop: {from: client, to: server, flags: data, count: 1}
    as: at its end
  - call: {client: send "one"}
  - wait: {segments: {from: gate, to: server, data: true, lost: true}}
  - call: {server: recv 3}
  - wait: {process: {server: awaiting}}
  - drop: {from: server, to: client, at: gate.outside, flags: data, count: 1}
    as: at the gate
  - call: {server: send "three"}
  - call: {client: recv 5}
  - wait: {process: {client: awaiting}}
  - cut: gate.outside
    as: cut
  - call: {client: send "four"}
  - wait: {segments: {from: client, to: gate, data: true, since: cut, retransmitted: true}}
  - join: gate.outside
  - call: {server: recv 4}
  - wait: {process: {server: awaiting}}
  - call: {client: close}
  - call: {server: recv; close}
  - wait: {sockets: {server: none, client: TIME-WAIT}}
expect:
  - sockets: {gate: none}
  - segments: {from: client, to: server, flags: SYN, count: 1}
  - segments: {from: gate, to: server, flags: SYN, count: 1}
  - segments: {from: client, to: gate, lost: true, count: 0}
  - segments: {from: gate, to: client, lost: true, since: at the gate, count: 1}
  - segments: {from: server, to: gate, lost: true, count: 0}
  - path: {client: [ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT]}
"""


@real_backends
@pytest.mark.parametrize(
    ("kind", "peer", "family"),
    [("nat", "gate.outside", V4), ("plain", "client.v6", V6)], ids=["nat", "plain"],
)  # fmt: skip
def test_a_router_between(
    backend: str, kind: str, peer: str, family: dict[str, str], tmp_path: Path
) -> None:
    gate = f"hosts:\n  gate: {{router: {kind}}}\n"
    networks = "networks: {inside: [client, gate], outside: [gate, server]}\n"
    hosts = HOSTS.replace("hosts:\n", networks + gate)
    seen = f"  - expect: {{sockets: {{server: {{state: ESTAB, peer: {peer}}}}}}}\n"
    passes(run(seen + STEPS, backend, tmp_path, family, hosts))


CHAIN = """\
title: A chain of routers
networks: {a: [home, near], b: [near, far], c: [far, server]}
hosts:
  server: {calls: socket; bind :8000; listen 20; accept; await}
  near: {router: KIND}
  far: {router: nat}
  home: {calls: socket; connect server:8000; await}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: home
  - wait: {sockets: {server: {state: ESTAB, peer: far.c}, home: ESTAB}}
  - inject: {from: home, to: server, flags: RST, seq: next}
  - wait: {sockets: {server: none}}
expect:
  - segments: {from: home, to: server, flags: SYN, count: 1}
  - segments: {from: near, to: far, flags: SYN, count: 1}
  - segments: {from: server, to: home, flags: SYN, count: 1}
  - segments: {from: home, to: server, flags: RST, injected: true, count: 1}
  - segments: {from: far, to: server, flags: RST, injected: true, count: 1}
  - segments: {flags: RST, count: 0}
  - path: {server: [SYN-RECV, ESTAB, closed]}
"""


@pytest.mark.netns
@pytest.mark.parametrize("kind", ["plain", "nat"])
def test_a_chain_of_routers(kind: str, tmp_path: Path) -> None:
    passes(run("", "netns", tmp_path, hosts=CHAIN.replace("KIND", kind)))
