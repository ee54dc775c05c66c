"""Causes of binds that name who holds the socket, by what supervisors report."""

from __future__ import annotations

import pytest

from labctl.record.events import Event, ProcessEvent
from tests.caused import LISTEN, bind_fails, calls, ended, holds, look, only, told

OF_ANOTHER = holds(2.5, "other", {2: {3: 1}})
NGINX = [ProcessEvent(0.5, "nginx", "server", "start", pid=2)]


def test_the_holders_of_a_program_s_listener_are_named() -> None:
    both = holds(3.01, "nginx", {2: {6: 1}, 9: {6: 1}})
    cause = only(told([*NGINX, both, *bind_fails(3.0, "new", LISTEN)]), "bind")
    assert cause.id == "bind-listener"
    line = (
        "LISTEN 0.0.0.0:8000, accept queue 0/5, "
        "held by nginx (pid 2, nginx, fd 6) and nginx (pid 9, nginx, fd 6)"
    )
    assert f"blocked by {line}; " in f"{cause.text}; "
    assert cause.evidence == (line,)
    assert [(each.ends, [h.pid for h in each.by]) for each in cause.holders] == [
        ((":8000", ""), [2, 9])
    ]


def test_a_process_that_is_named_as_holder_is_named_once() -> None:
    listens = calls(0.5, "first", "socket; bind :8000; listen 5", "server")
    first = holds(3.01, "first", {2: {3: 1}})
    cause = only(told([*listens, first, *bind_fails(3.0, "new", LISTEN)]), "bind")
    assert cause.text.endswith("held by first (pid 2, nginx, fd 3)")


@pytest.mark.parametrize(
    ("reports", "name", "certain"),
    [
        ([holds(1.0, "nginx", {2: {6: 1}, 3: {6: 1}})], "bind-child", True),
        ([holds(2.5, "nginx", {3: {6: 1}})], "bind-child", True),
        ([holds(2.5, "nginx", {3: {6: 2}})], "bind-child", False),  # of another socket
        ([holds(1.0, "nginx", {2: {6: 1}})], "bind-child", False),  # of the parent
        ([OF_ANOTHER], "bind-listener", True),
    ],
)
def test_a_program_s_child_is_certain_if_its_supervisor_names_it(
    reports: list[Event], name: str, certain: bool
) -> None:
    gone = [*NGINX, look(0.6, LISTEN), ended(2.0, "nginx", "server", exit=0, left=True)]
    other = (
        [ProcessEvent(0.6, "other", "server", "start", pid=2)] if reports == [OF_ANOTHER] else []
    )
    cause = only(told([*gone, *other, *reports, *bind_fails(3.0, "new", LISTEN)]), "bind")
    assert (cause.id, cause.certain) == (name, certain)
    named = {"bind-child": "nginx (pid 3, nginx, fd 6)", "bind-listener": "other (pid 2, nginx"}
    assert (f"held by {named[name]}" in cause.text) == certain
    assert "pid 2, nginx, fd 6" not in cause.text
