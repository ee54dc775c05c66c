"""The schema and the loader agree: on what shipped scenarios become when something in them changes,
and on every way to write a value.

What the schema can't know is how things hang together. So it may take what the loader refuses, for
the reasons in BEYOND and no others; what the loader takes it never refuses.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from labctl.ground.errors import ScenarioError
from labctl.ground.resources import catalogue, scenarios
from labctl.language.document import Document
from labctl.language.from_python import dump
from labctl.language.params import Given
from labctl.language.scenario import load_document
from labctl.language.schema import schema
from tests import CI

jsonschema = pytest.importorskip("jsonschema")

SHIPPED = [Document.read(path) for path in catalogue(scenarios()).values()]
MUTANTS, BATCHES = 40, 6 if CI else 2
MOST_BEYOND = 0.3

BEYOND = {
    "a name that nobody defines": r"unknown (host|process|param)\b|unknown param of the variants",
    "a name that is defined twice": r"is defined twice|the host name .* is taken",
    "a label": r"no earlier 'as' sets|no earlier drop has|the label .* is set twice",
    "a reserved name": r"is taken; small and capital",
    "a param": r"the param \$\{\w+\} (refers to itself|is a (list|mapping))",
    "variants that are alike to 'when'": r"differ in how .* is written alone",
    "what calls are given": r"usage:|unknown (socket option|call)|wants |is no |out of place|"
                            r"not closed|is missing|a quotation mark|is too",
    "a command line": r"is no command line",
    "a command that is empty": r"an empty 'run' needs|a process needs",
    "a regular expression": r"is no regular expression",
    "bounds that contradict each other": r"an impossible (range|path|segment)|ends a path|"
                                         r"'closed' alone|is no state of a connection",
    "a place that no socket has": r"has no address that there is|has no peer|has a port; name it|"
                                  r"no socket of 127",
    "a count on several hosts": r"'count' counts on one host",
    "a duration in words that is too long": r"days at most|is too long",
    "a whole number with a point": r"not \d+\.0$",
}  # fmt: skip
"""Why the loader may refuse what the schema takes."""

POOL = [
    None, True, False, 0, 1, -1, 3, 70000, 2.5, "", " ", "x", "server", "client", "nobody",
    "LISTEN", "ESTABB", "5s", "-5s", ">=3", ">", "none", "ok", "EADDRINUSE", "EWHAT", "TERM",
    "SIGWHAT", "FIN", "FUN", "${nope}", ":8000", ":0", [], {}, ["x"], {"x": 1}, ["LISTEN"],
    {"server": "LISTEN"}, "socket; bind :80", "sokcet", "a\nb", "all",
]  # fmt: skip
KEYS = [
    "x", "sevrer", "state", "count", "from", "to", "flags", "as", "when", "within", "since",
    "server", "client", "title", "call", "run", "calls", "image", "uid", "0x1f", "a b", "-a",
]  # fmt: skip
Path_ = tuple[Any, ...]


@cache
def validator() -> Any:
    return jsonschema.Draft202012Validator(schema())


def takes(text: str) -> bool:
    """Whether the schema takes a scenario as it is written: all that an editor sees."""
    return bool(validator().is_valid(Document("m.yaml", text).expand(None).data))


def takes_filled(text: str) -> bool:
    """Whether it takes what becomes of one with its params, in every variant."""
    document = Document("m.yaml", text)
    try:
        choices = Given(document).choices({})
    except ScenarioError:
        return True
    return all(validator().is_valid(document.expand(c.params).data) for c in choices)


def mistakes(text: str) -> list[str]:
    """What the loader has against a scenario."""
    try:
        load_document(Document("m.yaml", text), text, "m", {})
    except ScenarioError as exc:
        return [mistake.message for mistake in exc.mistakes]
    return []


def places(data: Any, path: Path_ = ()) -> Iterator[Path_]:
    yield path
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(value, (*path, key))


def at(data: Any, path: Path_) -> Any:
    for part in path:
        data = data[part]
    return data


def mutant(data: Any, chance: random.Random) -> str:
    """A scenario with one thing changed."""
    data = copy.deepcopy(data)
    while True:
        paths = [path for path in places(data) if path]
        path = chance.choice(paths)
        parent, last = at(data, path[:-1]), path[-1]
        value = parent[last]
        match chance.choice(["drop", "rename", "add", "replace", "move", "double", "letter"]):
            case "drop":
                del parent[last]
            case "rename" if isinstance(parent, dict):
                names = [chance.choice(KEYS), f"{last}s", last[:-1], last.upper()]
                new = chance.choice(names)
                items = [(new if key == last else key, item) for key, item in parent.items()]
                parent.clear()
                parent.update(items)
            case "add" if isinstance(value, dict):
                value[chance.choice(KEYS)] = copy.deepcopy(chance.choice(POOL))
            case "add" if isinstance(value, list):
                value.insert(chance.randrange(len(value) + 1), copy.deepcopy(chance.choice(POOL)))
            case "replace":
                parent[last] = copy.deepcopy(chance.choice(POOL))
            case "move":
                others = [p for p in paths if p[: len(path)] != path and path[: len(p)] != p]
                parent[last] = copy.deepcopy(at(data, chance.choice(others)))
            case "double" if isinstance(parent, list):
                parent.insert(last, copy.deepcopy(value))
            case "letter" if isinstance(value, str) and value:
                where = chance.randrange(len(value))
                letter = chance.choice(["", "x", " ", "0", "-"])
                parent[last] = value[:where] + letter + value[where + 1 :]
            case _:
                continue
        return dump(data)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_the_schema_and_the_loader_agree(batch: int) -> None:
    chance = random.Random(batch)
    beyond = 0
    for number in range(MUTANTS):
        text = mutant(chance.choice(SHIPPED).expand(None).data, chance)
        found = mistakes(text)
        if not found:
            assert takes(text), f"the loader takes this, batch {batch}, {number}:\n{text}"
            assert takes_filled(text), f"the loader takes this, batch {batch}, {number}:\n{text}"
        elif takes(text):
            beyond += 1
            known = any(re.search(p, m) for m in found for p in BEYOND.values())
            assert known or not takes_filled(text), f"the schema takes this: {found}\n{text}"
    assert beyond <= MOST_BEYOND * MUTANTS


@pytest.mark.parametrize("reason", BEYOND)
def test_each_reason_is_one(reason: str) -> None:
    """What stands in BEYOND is seen, or it would be no more than an excuse."""
    assert reason in EXAMPLES
    text = around(EXAMPLES[reason])
    assert takes(text), reason
    assert takes_filled(text), reason
    assert any(re.search(BEYOND[reason], message) for message in mistakes(text))


def around(steps: str) -> str:
    """A scenario with these steps; or other keys, in lines of their own."""
    extra = "".join(line + "\n" for line in steps.splitlines() if not line.startswith("- "))
    lines = "".join(line + "\n" for line in steps.splitlines() if line.startswith("- "))
    hosts = "" if "hosts:" in extra else (
        "hosts: {server: {calls: await}, client: {run: cat}, gate: {}}\n"
    )  # fmt: skip
    return f"title: t\n{hosts}{extra}steps:\n{lines or '  []'}\n"


EXAMPLES = {
    "a name that nobody defines": "- start: sevrer",
    "a name that is defined twice": (
        "hosts: {a: {calls: wait, processes: {a: {calls: wait}}}, b: {}}"
    ),
    "a label": "- heal: nothing",
    "a reserved name": "hosts: {localhost: {}, b: {}}",
    "a param": "params: {p: [a]}\n- note: about ${p}",
    "variants that are alike to 'when'": (
        "variants: [{v: 1.0}, {v: 1.00}]\n- {note: a, when: {variant: {v: 1.0}}}"
    ),
    "what calls are given": "- call: {server: listen many}",
    "a command line": 'hosts: {a: {run: "\'"}, b: {}}',
    "a command that is empty": "hosts: {a: {run: ''}, b: {}}",
    "a regular expression": "- wait: {process: {client: {output: '('}}}",
    "bounds that contradict each other": "- wait: {segments: {at_least: 5, at_most: 3}}",
    "a place that no socket has": "- wait: {sockets: {server: {state: LISTEN, peer: client}}}",
    "a count on several hosts": "- drop: {from: server, count: 1}",
    "a duration in words that is too long": "- sleep: 200h",
    "a whole number with a point": "- wait: {process: {client: {exit: 3.0}}}",
}


@pytest.mark.parametrize(
    "steps",
    [
        *(f"- wait: {{sockets: {{server: {state}}}}}" for state in (
            "fin_wait2", "TCP_CLOSE", "established", "Time Wait", "none", "[none]", "syn-rcvd",
            "[LISTEN, {state: tcpListening, count: 0}]", "{}", "{count: '>= 3'}", "{count: 0x10}",
            '{local: ":8000"}', '{local: "*:80"}', '{local: "fd00::2"}', '{peer: server.v6}',
            '{local: "[FD00::2]:65535"}', "{local: 198.18.0.2}", "{timer: timewait}",
            "{recv-q: '!=0', send-q: <3}", "{peer: 'localhost:1'}",
        )),
        *(f"- wait: {{process: {{client: {claim}}}}}" for claim in (
            "ok", "EADDRINUSE", "{signal: sigterm}", "{signal: 15}", "{signal: '15'}", "{exit: 0}",
            "{signal: SIGRTMIN+1}", "{signal: rtmax-2}", "{output: 6.20}", "{received: '>0'}",
            "{call: {bind: ok, recv: ECONNRESET}}", "{state: exited, exit: 3}", "{errno: EPIPE}",
        )),
        *(f"- {{sleep: {length}}}" for length in ("0", "1.5", "' 5 s'", "2min", "604800", "1h")),
        *(f"- {{wait: {{process: {{client: ok}}}}, within: {w}}}" for w in (
            "3", "4.5s..7s", "'1 .. 2m'", "0.5")),
        *(f"- drop: {{to: client, {keys}}}" for keys in (
            "flags: SYN|ACK", "flags: 'SYN, ACK'", "flags: []", "flags: [FIN, ACK], bare: true",
            "bare: false", "from: 'server.v6:8000', count: 3", "at: sender, from: server",
            "at_most: 3, injected: false", "injected: true",
        )),
        "- {reject: {to: client, with: rst}, as: r}\n- heal: r",
        "- reject: {from: server, to: client, count: 3, with: port-unreachable}",
        *(f"- inject: {{from: server, to: client, flags: {keys}}}" for keys in (
            "ACK, seq: next + 5, ack: 1", "[PSH, ACK], payload: é", "RST, seq: 4294967295",
            "FIN, connection: 2, seq: ' next-1 '", "SYN, window: 0, absolute: true, seq: 5",
            "SYN, options: {mss: 1460, wscale: 7, sack: true, fastopen: '', raw: '01 01'}",
            "ACK, options: {timestamps: false}, ecn: {CE: true, ECE: false}",
            "ACK, options: {timestamps: {val: last-5, ecr: 0}, md5: '" + "0f" * 16 + "'}",
            "ACK, options: {timestamps: true}",
        )),
        "- inject: {from: server, to: client, icmp: fragmentation-needed, mtu: 500, seq: next+5}",
        *(f"- net: {{server: {{{keys}}}}}" for keys in (
            "", "delay: 60", "delay: 50ms, reorder: 25%", "loss: 5 %", "rate: 1.5MBIT",
            "rate: 10KiBps", "duplicate: 0100%",
        )),
        *(f"- {{note: a, when: {{{keys}}}}}" for keys in (
            "kernel: 6.20", "kernel: 6", "kernel: '>= 6.1.5'", "backend: docker", "",
        )),
        "- wait: {segments: {flags: FIN, lost: true, since_first: [SYN], count: '<=3'}}",
        *(f"- wait: {{segments: {{from: server, {keys}}}}}" for keys in (
            "seq: 1, ack: '>=5', length: 0, window: '<100', tsval: 3, tsecr: '!=0'",
            "ecn: {ECE: true, CE: false}, options: {mss: true, fastopen: false}, payload: ^a",
            "flags: ACK, bare: true, then: {to: server, then: {flags: [RST], bare: true}}",
            "spaced: [1s, 0.5, 2m], tolerance: 5%",
        )),
        "- wait: {lasted: {server: FIN_WAIT2, for: 5s}}",
        "- wait: {lasted: {server: ESTAB, for: 0, tolerance: 1}}",
        "- wait: {path: {server: [SYN-RECV, ESTABLISHED, closed]}}",
        "- wait: {counters: {server: {TcpOutRsts: '>=1'}}}",
        "- sysctl: {server: {net.ipv4.tcp_fin_timeout: 3, net.ipv4.ping_group_range: '0 0'}}",
        "- {note: 5, as: a label}\n- {wait: {sockets: {server: none}}, since: a label}",
        "- call: {server: 'close; \"socket\"; # and so on\n\n ;;wait'}".replace("\n", "\\n"),
        "params: {n: 3, claim: {output: x}, all: {process: {client: ok}}, verb: start}\n"
        "- sleep: ${n}\n- wait: ${all}\n- wait: {process: {client: '${claim}'}}\n"
        "- {'${verb}': server}",
        'params: {l: "socket\\nwait", w: wait}\nhosts: {a: {calls: "${l}"}, b: {calls: " ${w} "}}',
        "hosts: {a: {run: '', default: cat, image: ''}, b: {processes: {p: {default: cat}}}}",
        "- {exec: {server: 'true'}, status: any, output: x}",
        "hosts: {a: {}}\n- {note: a}\n- {wait: {sockets: {a: none}}}\n- {sleep: 1s}",
        "hosts: {a: {run: [echo, 1, 6.20], env: {A: 1}, uid: '', rights: []}, b: {image: x}}",
        "refs: [6.20]\nabout: 3\ntheme: 1",
        "variants: [{v: null}, {v: [1]}]\nneeds: [tracing]\n"
        "- {note: a, when: {variant: {v: null}}}",
    ],
)  # fmt: skip
def test_every_way_to_write_a_value(steps: str) -> None:
    text = around(steps)
    assert mistakes(text) == []
    assert takes(text), list(validator().iter_errors(Document("m.yaml", text).expand(None).data))
    assert takes_filled(text)


@pytest.mark.parametrize(
    "steps",
    [
        "- wait: {}", "- wait: {sockets: {}}", "- wait: {sockets: {server: ESTABB}}",
        "- wait: {sockets: {server: []}}", "- wait: {sockets: {server: [none, LISTEN]}}",
        "- wait: {sockets: {server: {sate: LISTEN}}}", "- wait: {process: {client: {}}}",
        "- wait: {process: {client: {call: {}}}}", "- wait: {process: {client: {exit: true}}}",
        "- wait: {process: {client: {call: {bnd: ok}}}}", "- wait: {process: {client: EADRINUSE}}",
        "- wait: {process: {client: {state: running, exit: 3}}}", "- wait: {segments: {lost: 1}}",
        "- wait: {sockets: {server: {local: ':09000'}}}", "- wait: {counters: {server: {}}}",
        "- wait: {segments: {options: {mms: true}}}", "- wait: {segments: {ecn: {}}}",
        "- wait: {segments: {spaced: [1s]}}", "- wait: {segments: {flags: FIN, tolerance: 5%}}",
        "- wait: {segments: {then: {count: 1}}}", "- wait: {segments: {bare: true}}",
        "- wait: {lasted: {server: LISTEN, for: 5s}}", "- wait: {lasted: {for: 5s}}",
        "- wait: {lasted: {server: ESTAB, client: ESTAB, for: 5s}}", "- wait: {path: {server: []}}",
        "- drop: {flags: FIN}", "- drop: {to: server, bare: true}", "- drop: {to: ':80'}",
        "- drop: {to: server, at_most: 0}", "- drop: {to: server, with: rst}",
        "- reject: {to: server}", "- reject: {to: server, with: reset}",
        "- drop: {to: server, flags: data, bare: true}", "- net: {server: {reorder: 1%}}",
        "- inject: {from: server, to: client, flags: RST, ack: 1}", "- {note: a, as: }",
        "- inject: {from: server, to: client}", "- inject: {from: server, to: client, icmp: x}",
        "- inject: {from: server, to: client, flags: ACK, window: 65536}",
        "- inject: {from: server, to: client, flags: ACK, options: {timestamps: 5}}",
        "- inject: {from: server, to: client, flags: ACK, options: {raw: xy}}",
        "- inject: {from: server, to: client, flags: data}", "- {start: server, stop: server}",
        "- {as: a}", "- {strat: server}", "- start: -a", "- {note: a, within: 5s}",
        "- {note: a, when: {variant: {a-b: 1}}}", "- {note: a, when: {backend: podman}}",
        "- sysctl: {server: {kernel.hostname: x}}", "- sysctl: {server: {net.ipv4.x: 1.5}}",
        "- call: {server: sokcet}", "- signal: {server: TREM}", "- sleep: -1", "- sleep: five",
        "params: {fin-timeout: 5}", "variants: [{}]", "variants: [{a b: 1}]", "theme: [a]",
        "hosts: {}", "hosts: {a: {}}\n- {cut: a}",
        "hosts: {7: {}, b: {}}", "hosts: {a_b: {}, b: {}}",
        "hosts: {a: {calls: wait, run: cat}, b: {}}", "hosts: {a: {calls: wait, image: x}, b: {}}",
        "hosts: {a: {processes: {-p: {run: cat}}}, b: {}}",
        "hosts: {a: {processes: {p: {}}}, b: {}}",
        "hosts: {a: {run: []}, b: {}}", "hosts: {a: {uid: true}, b: {}}", "needs: [magic]",
        "hosts: {a: {calls: }, b: {}}", "hosts: {a: , b: {}}",
    ],
)  # fmt: skip
def test_mistakes_that_the_schema_finds(steps: str) -> None:
    text = around(steps)
    assert mistakes(text)
    assert not takes(text)
