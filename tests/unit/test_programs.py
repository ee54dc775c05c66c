"""What the processes of a scenario run, and as whom."""

from __future__ import annotations

import pytest

from labctl.backends import HostSpec
from labctl.ground.errors import ScenarioError
from tests.unit.test_scenario import case

# Hosts and processes


def test_processes_and_what_they_imply() -> None:
    text = """\
title: processes
hosts:
  server:
    image: nginx:1
    addresses: 3
    processes:
      web: {run: "nginx -g 'daemon off;'"}
      other: {run: [cat, 7], image: alpine:3, uid: 1000, env: {A: 1}}
      plain: {calls: "connect client.v6:80; connect server.3.v6:80; connect [::1]:80"}
    uid: 33
    env: {A: 2, B: 2}
    rights: [CHOWN]
  client:
    uid: 0
    calls: "bind server.2:0; connect localhost:80; connect 198.18.0.2:80; bind :0"
needs: [images]
steps: []
"""
    found = case(text)
    web, other, plain, client = found.processes.values()
    assert (web.run, web.image, web.host) == (("nginx", "-g", "daemon off;"), "nginx:1", "server")
    assert (other.run, other.image, other.uid) == (("cat", "7"), "alpine:3", 1000)
    assert (other.env, other.rights) == ({"A": "1", "B": "2"}, ("CHOWN",))
    assert (web.env, web.uid) == ({"A": "2", "B": "2"}, 33)
    assert (plain.image, plain.calls is None) == (None, False)
    assert (client.name, client.host, client.uid) == ("client", "client", 0)
    assert found.needs == {"images", "uids"}
    assert found.spec.hosts == [HostSpec("server", 3), HostSpec("client", 1)]


def test_an_empty_program_is_no_process() -> None:
    text = "title: t\nhosts: {server: {calls: }, client: {}}\nsteps: [start: server]\n"
    with pytest.raises(ScenarioError) as caught:
        case(text)
    assert [mistake.message for mistake in caught.value.mistakes] == [
        "'calls' has no value; give it one, or leave it out",
        "unknown process 'server'; allowed: none; 'server' is a host, and no process of it has "
        "that name: give it `calls` or `run`",
    ]


# --- What runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "run", "image"),
    [
        ("run: a b", ("a", "b"), None),
        ("image: mine", None, "mine"),
        ("image: mine, run: a", ("a",), "mine"),
        ("image: mine, run: ''", None, "mine"),
        ("image: mine, run: '', default: a", None, "mine"),
        ("image: '', run: '', default: a", ("a",), ""),
        ("image: '', run: b, default: a", ("b",), ""),
        ("default: a", ("a",), None),
    ],
)
def test_what_a_process_runs(host: str, run: tuple[str, ...] | None, image: str | None) -> None:
    text = f"title: t\nhosts: {{a: {{{host}}}, b: {{}}}}\nsteps: [start: a]\n"
    process = case(text).processes["a"]
    assert (process.run, process.image or "") == (run, image or "")
    assert ("images" in case(text).needs) == bool(image)
    below = (
        f"title: t\nhosts: {{a: {{processes: {{p: {{{host}}}}}}}, b: {{}}}}\nsteps: [start: p]\n"
    )
    assert case(below).processes["p"].run == run


def test_an_image_beside_processes_is_theirs() -> None:
    text = """\
title: t
hosts: {a: {image: mine, processes: {p: {run: x}, q: {image: other}}}, b: {}}
steps: [start: p, start: q]
"""
    found = case(text).processes
    assert {n: (p.run, p.image) for n, p in found.items()} == {
        "p": (("x",), "mine"), "q": (None, "other")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("run: ''", "an empty 'run' needs an 'image', whose own command runs, or a 'default'"),
        ("run: '', image: ''", "an empty 'run' needs an 'image'"),
        ("calls: wait, default: x", "'calls' and 'default' exclude each other"),
        ("processes: {p: {}}", "a process needs 'calls', 'run', 'image' or 'default'"),
        ("processes: {p: {uid: 3}}", "a process needs 'calls', 'run', 'image' or 'default'"),
        ("run: []", "a command line is wanted here"),
    ],
)
def test_what_runs_nothing(host: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        case(f"title: t\nhosts: {{a: {{{host}}}, b: {{}}}}\nsteps: [note: x]\n")
    assert message in str(caught.value)
