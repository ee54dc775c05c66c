"""What goes wrong on purpose, goes wrong as it was said: on real stacks, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.judge.result import RunResult
from labctl.record.events import (
    AddressEvent,
    CallEvent,
    LossEvent,
    ProcessEvent,
    TallyEvent,
    TroubleEvent,
)
from labctl.run.places import Place
from labctl.run.runner import Silent
from labctl.run.workflow import run_case
from tests.contract import real_backends
from tests.fake import scenario

HOSTS = """\
title: Faults
hosts:
  server:
    calls: socket ${family}; bind :8000; listen 20; accept; await
  client:
    calls: socket ${family}; connect server${suffix}:8000; await
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {server: ESTAB, client: ESTAB}}
"""
V4 = {"family": "tcp", "suffix": ""}
V6 = {"family": "tcp6", "suffix": ".v6"}


def run(
    steps: str, backend: str, folder: Path, family: dict[str, str] = V4, hosts: str = HOSTS
) -> RunResult:
    """A connection between two programs that obey, and then what is to be tried."""
    for name, value in family.items():
        hosts = hosts.replace(f"${{{name}}}", value)
    found = run_case(scenario(hosts + steps), Place(backend), folder, Silent(), lambda text: None)
    if found.result == "skip":
        pytest.skip(found.reason or "")
    return found


def words(found: RunResult) -> list[str]:
    """The verdicts, to compare or to read."""
    return [f"{v.result}: {v.what}: {v.actual}" for v in found.verdicts]


def verdict(found: RunResult, what: str) -> str:
    """How a claim ended."""
    (result,) = (v.result for v in found.verdicts if v.what == what)
    return result


def passes(found: RunResult) -> None:
    assert found.result == "pass", (found.reason, words(found))


# --- Drops ----------------------------------------------------------------------------------------


@real_backends
@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("place", ["receiver", "sender"])
def test_a_lost_fin_is_sent_again(
    backend: str, place: str, family: dict[str, str], tmp_path: Path
) -> None:
    found = run(
        f"""
  - drop: {{from: server, to: "client", flags: FIN, count: 1, at: {place}}}
    as: no FIN
  - call: {{server: close}}
  - wait: {{sockets: {{server: FIN-WAIT-2, client: CLOSE-WAIT}}}}
    since: no FIN
    within: 150ms..5s
expect:
  - segments: {{from: server, flags: FIN, count: 2}}
  - segments: {{from: server, flags: FIN, lost: true, retransmitted: false, count: 1}}
  - segments: {{from: server, flags: FIN, lost: false, retransmitted: true, count: 1}}
""",
        backend,
        tmp_path,
        family,
    )
    passes(found)
    (loss,) = (e for e in found.history.events if isinstance(e, LossEvent))
    assert loss.host == ("client" if place == "receiver" else "server")
    (lost,) = (v for v in found.verdicts if v.what.startswith("drop "))
    assert lost.actual == "1 segment lost"
    assert len(lost.evidence) == 1 and "FIN ACK seq 1 ack 1 [lost]" in lost.evidence[0]


@real_backends
@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_bare_acks_and_nothing_else(backend: str, family: dict[str, str], tmp_path: Path) -> None:
    """What has data, and ACK too, arrives; of acknowledgements without, two are lost."""
    found = run(
        """
  - drop: {from: server:8000, to: client, flags: ACK, bare: true, count: 2}
    as: no ACK
  - call: {server: 'send "hello"', client: 'recv 5; send "hello"'}
  - wait: {sockets: {client: {state: ESTAB, send-q: 0}}}
    since: no ACK
    within: 300ms..10s
  - expect: {process: {client: {call: {recv: ok}}}}
expect:
  - segments: {from: server, flags: ACK, data: false, lost: true, count: 2}
  - segments: {from: server, data: true, retransmitted: false, lost: false, count: 1}
  - segments: {from: client, data: true, retransmitted: true, at_least: 2}
""",
        backend,
        tmp_path,
        family,
    )
    passes(found)


@real_backends
def test_a_count_is_exact(backend: str, tmp_path: Path) -> None:
    found = run(
        """
  - drop: {from: client, to: server, flags: data, count: 3}
    as: no data
  - call: {server: recv 5, client: 'send "hello"'}
  - wait: {process: {server: {call: {recv: ok}}}}
    since: no data
    within: 1s..10s
expect:
  - segments: {from: client, flags: data, count: 4}
  - segments: {from: client, flags: data, lost: true, count: 3}
""",
        backend,
        tmp_path,
    )
    passes(found)
    tallies = [e for e in found.history.events if isinstance(e, TallyEvent)]
    assert [(e.host, e.lost) for e in tallies] == [("server", 3)]


@real_backends
def test_a_drop_that_never_matches_has_failed(backend: str, tmp_path: Path) -> None:
    found = run(
        """
  - drop: {from: server, flags: RST}
  - drop: {to: client, flags: SYN, count: 2}
  - drop: {to: server, flags: RST}
    when: {kernel: "<2.0"}
""",
        backend,
        tmp_path,
    )
    assert found.result == "fail"
    assert [(v.result, v.expected, v.actual) for v in found.verdicts[-3:]] == [
        ("fail", "at least 1 segment lost", "0 segments lost"),
        ("fail", "2 segments lost", "0 segments lost"),
        ("skip", "at least 1 segment lost", found.verdicts[-1].actual),
    ]
    assert [v.source for v in found.verdicts[-3:]] == [f"lesson.yaml:{n}" for n in (13, 14, 15)]


@real_backends
def test_healed_by_name_and_all(backend: str, tmp_path: Path) -> None:
    found = run(
        """
  - drop: {from: server, to: client, flags: data}
    as: one way
  - drop: {from: client, to: server, flags: data}
  - call: {client: 'send "hello"; recv 5', server: 'send "hello"; recv 5'}
  - sleep: 100ms
  - heal: one way
  - wait: {process: {client: {call: {recv: ok}}}}
  - expect: {process: {server: {call: {send: ok}}}}
  - heal: all
  - wait: {process: {server: {call: {recv: ok}}}}
""",
        backend,
        tmp_path,
    )
    passes(found)


# --- Links ----------------------------------------------------------------------------------------


@real_backends
@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_cut_and_joined(backend: str, family: dict[str, str], tmp_path: Path) -> None:
    """What was sent meanwhile is lost and sent again; captures go on."""
    found = run(
        """
  - cut: client
    as: cut
  - call: {server: 'send "hello"', client: recv 5}
  - wait: {segments: {from: server, flags: data, lost: true}}
  - expect: {process: {client: {call: {connect: ok}}}}
  - join: client
    as: joined
  - wait: {process: {client: {call: {recv: ok}}}}
    since: joined
    within: 20s
  - call: {client: 'send "answer"', server: recv 6}
  - wait: {process: {server: {call: {recv: ok}}}}
expect:
  - segments: {from: server, flags: data, lost: true}
  - segments: {from: server, flags: data, retransmitted: true, lost: false}
  - segments: {from: client, flags: data, lost: false, since: joined}
""",
        backend,
        tmp_path,
        family,
    )
    passes(found)
    assert not [e for e in found.history.events if isinstance(e, TroubleEvent)]


@real_backends
def test_a_slow_link(backend: str, tmp_path: Path) -> None:
    """Or none at all, where the kernel has no netem: before any process has started."""
    steps = """
  - net: {server: {delay: 200ms}}
    as: slow
  - call: {server: 'send "hello"', client: recv 5}
  - wait: {process: {client: {call: {recv: ok}}}}
    since: slow
    within: 200ms..5s
  - heal: all
    as: healed
  - call: {server: 'send "hello"', client: recv 5}
  - wait: {process: {client: {call: {recv: ok}}}}
"""
    hosts = HOSTS.replace("${family}", "tcp").replace("${suffix}", "")
    found = run_case(scenario(hosts + steps), Place(backend), tmp_path, Silent(), lambda text: None)
    if found.result != "skip":
        passes(found)
    else:
        assert str(found.reason).endswith("load the module sch_netem, and install iproute2")
        assert not [e for e in found.history.events if isinstance(e, ProcessEvent)]


# --- Injections -----------------------------------------------------------------------------------


@real_backends
@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_a_reset_ends_a_time_wait(backend: str, family: dict[str, str], tmp_path: Path) -> None:
    """RFC 1337: at exactly the next sequence number, and only there."""
    found = run(
        """
  - sysctl: {server: {net.ipv4.tcp_rfc1337: 0}}
  - call: {server: close}
  - wait: {sockets: {client: CLOSE-WAIT}}
  - call: {client: close}
  - wait: {sockets: {server: TIME-WAIT, client: none}}
  - inject: {from: client, to: "server:8000", flags: RST, seq: next+1}
  - sleep: 100ms
  - expect: {sockets: {server: TIME-WAIT}}
  - inject: {from: client, to: server, flags: RST}
  - wait: {sockets: {server: none}}
    within: 2s
expect:
  - segments: {from: client, flags: RST, injected: true, lost: false, count: 2}
  - segments: {from: client, flags: RST, count: 0}
""",
        backend,
        tmp_path,
        family,
    )
    passes(found)


@real_backends
def test_injected_data_is_read(backend: str, tmp_path: Path) -> None:
    """In a connection with timestamps, by a receiver that checks them."""
    found = run(
        """
  - call: {client: 'send "hello "', server: recv 6}
  - wait: {process: {server: {call: {recv: ok}}}}
  - inject: {from: client, to: server, flags: [PSH, ACK], payload: intruder}
  - call: {server: recv 8}
  - wait: {process: {server: {call: {recv: ok}}}}
expect:
  - counters: {server: {TcpExtPAWSEstab: 0}}
  - segments: {from: client, data: true, injected: true, count: 1}
  - segments: {from: client, data: true, count: 1}
""",
        backend,
        tmp_path,
    )
    passes(found)
    calls = [e for e in found.history.events if isinstance(e, CallEvent) and e.phase == "done"]
    assert [e.data for e in calls if e.process == "server" and e.name == "recv"][-1] == "intruder"


@real_backends
def test_nothing_to_inject_into(backend: str, tmp_path: Path) -> None:
    found = run(
        """
  - inject: {from: client, to: server, flags: RST, connection: 2}
  - note: not reached
""",
        backend,
        tmp_path,
    )
    assert found.result == "fail"
    assert found.verdicts[-1].expected == "a connection number 2 between client and server"
    assert found.verdicts[-1].actual == "1 of them"


# --- Addresses ------------------------------------------------------------------------------------

ADDED = """\
title: An address that the scenario added
params:
  address: |-
    import ipaddress, socket
    a = str(ipaddress.ip_address(socket.gethostbyname('server')) + 20)
hosts:
  server: {calls: "socket; bind :8000; listen 20; accept; await"}
  client:
    run:
      - python3
      - -c
      - |
        ${address}
        s = socket.create_connection((a, 8000)); s.send(b"hello"); s.recv(1)
steps:
  - drop: {to: server, flags: SYN, count: 1}
  - exec:
      server: |
        ip addr add $(python3 -c "${address}
        print(a)")/32 dev eth0
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {server: ESTAB, client: ESTAB}}
  - expect: {sockets: {server: {state: ESTAB, local: server, recv-q: 5}}}
  - expect: {sockets: {client: {state: ESTAB, peer: "server:8000"}}}
  - expect: {sockets: {client: {state: ESTAB, peer: "client:8000"}}}
expect:
  - segments: {from: client, to: server, flags: SYN, lost: true, count: 1}
  - segments: {from: client, to: server, flags: data, count: 1}
  - segments: {from: server, to: client, flags: data, count: 1}
"""


@real_backends
def test_an_address_that_was_added_is_its_hosts_own(backend: str, tmp_path: Path) -> None:
    """Claims and drops know it, and those about another host are false."""
    found = run("", backend, tmp_path, hosts=ADDED)
    assert [v.result for v in found.verdicts] == [
        *["pass"] * 5, "fail", *["pass"] * 3, "fail"
    ], words(found)  # fmt: skip
    added = [e for e in found.history.events if isinstance(e, AddressEvent)]
    assert [e.host for e in added if not e.address.startswith("fe80:")] == ["server"]


MOVED = """\
title: An address that moves from one host to another
params:
  address: |-
    import ipaddress, socket
    a = str(ipaddress.ip_address(socket.gethostbyname('server')) + 20)
hosts:
  server: {calls: "socket; bind :8000; listen 20; accept; await"}
  gate: {calls: "socket; bind :8000; listen 20; accept; await"}
  client:
    processes:
      first: &client
        run:
          - python3
          - -c
          - |
            ${address}
            s = socket.create_connection((a, 8000)); s.send(b"hello"); s.recv(1)
      second: *client
steps:
  - exec:
      server: |
        ip addr add $(python3 -c "${address}
        print(a)")/32 dev eth0
  - start: server
  - start: gate
  - wait: {sockets: {server: LISTEN, gate: LISTEN}}
  - start: first
  - wait: {sockets: {server: {state: ESTAB, recv-q: 5}, client: {state: ESTAB, peer: server}}}
  - kill: first
  - kill: server
  - exec:
      server: |
        ip addr del $(python3 -c "${address}
        print(a)")/32 dev eth0
      gate: |
        ip addr add $(python3 -c "${address}
        print(a)")/32 dev eth0
      client: ip neigh flush all
  - start: second
  - wait: {sockets: {gate: {state: ESTAB, recv-q: 5}, client: {state: ESTAB, peer: gate}}}
  - expect: {sockets: {client: {state: ESTAB, peer: server, count: 0}}}
expect:
  - segments: {from: client, to: server, flags: data, count: 1}
  - segments: {from: client, to: gate, flags: data, count: 1}
  - segments: {from: server, to: client, flags: [SYN, ACK], count: 1}
  - segments: {from: gate, to: client, flags: [SYN, ACK], count: 1}
  - segments: {lost: true, count: 0}
"""


@real_backends
def test_an_address_that_moves_is_whose_it_was(backend: str, tmp_path: Path) -> None:
    """What went to its first host stays what that one got."""
    passes(run("", backend, tmp_path, hosts=MOVED))
