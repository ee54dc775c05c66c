"""Which look tells of which bind, and which addresses are in its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from labctl.judge.causes.cause import Cause
from labctl.record.events import Event
from tests.caused import (
    CLIENT,
    IN_USE,
    LISTEN,
    SERVER,
    bind_fails,
    call,
    calls,
    ended,
    handshake,
    ids,
    look,
    only,
    said,
    told,
)
from tests.fake import tcp

SIX, ANY, BOTH = (
    "[fd00::2]:8000",
    tcp("LISTEN", "[::]:8000", "[::]:*"),
    tcp("LISTEN", "*:8000", "*:*"),
)
DEVICE = tcp("LISTEN", "0.0.0.0%eth0:8000")


@pytest.mark.parametrize(
    ("texts", "line", "named"),
    [
        ("socket; bind :8000", DEVICE, True),  # of every link it takes that one, too
        ("socket; set SO_BINDTODEVICE eth0; bind :8000", DEVICE, True),
        ("socket; set SO_BINDTODEVICE eth1; bind :8000", DEVICE, False),
        ("socket; set SO_BINDTODEVICE eth1; bind :8000", LISTEN, True),
        ("bind :8000", DEVICE, True),  # of an unknown socket
        ("socket tcp6; set IPV6_V6ONLY; bind [::]:8000", tcp("LISTEN", SIX, "[::]:*"), True),
        ("socket tcp6; bind server.v6:8000", ANY, True),
        ("socket tcp6; bind server.v6:8000", BOTH, True),
        ("socket; bind server:8000", BOTH, True),
        ("socket; bind server:8000", LISTEN, True),
        ("socket; bind server:8000", tcp("LISTEN", "198.18.0.4:8000"), False),
        ("bind server.v6:8000", ANY, True),
        ("bind server.v6:8000", LISTEN, False),
        ("bind server:8000", ANY, False),
        ("bind server:8000", LISTEN, True),
        ("bind [::ffff:198.18.0.2]:8000", LISTEN, True),
        ("bind [::ffff:198.18.0.2]:8000", ANY, False),
        ("socket tcp6; bind [::ffff:198.18.0.2]:8000", LISTEN, True),
        ("socket tcp6; bind [::ffff:198.18.0.2]:8000", ANY, False),
    ],
)
def test_which_addresses_overlap(texts: str, line: str, named: bool) -> None:
    assert bool(ids(told(bind_fails(3.0, "new", line, texts=texts)), "bind-")) is named


def fails(t: float, text: str = "bind :8000", process: str = "new", **more: Any) -> Event:
    return call(t, process, text, "server", **{**IN_USE, **more})


def shows(t: float, text: str = "bind :8000", host: str = "server") -> Event:
    return look(t, LISTEN, host=host, caption=text)


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([fails(3.0), shows(3.1)], 1),
        ([fails(3.0), shows(5.0)], 1),
        ([fails(3.0), shows(5.1)], 0),  # too late to tell of it
        ([shows(2.9), fails(3.0)], 0),
        ([fails(3.0), shows(3.1), shows(3.2)], 1),
        ([fails(3.0), fails(3.05), shows(3.1)], 1),  # each look tells of one
        ([fails(3.0), fails(3.05), shows(3.1), shows(3.2)], 2),
        ([fails(3.0), shows(3.1, "bind :8001")], 0),
        ([fails(3.0), shows(3.1, host="client")], 0),
        ([fails(3.0), look(3.05, "nothing of ss", caption="bind :8000"), shows(3.1)], 1),
        ([fails(3.0, errno="EACCES", error="no"), shows(3.1)], 0),
        ([fails(3.0, "connect server:8000"), shows(3.1, "connect server:8000")], 0),
    ],
)
def test_which_look_tells_of_which_bind(events: list[Event], count: int) -> None:
    history = told([*calls(2.5, "new", "socket", "server"), *events])
    assert ids(history, "bind-") == ["bind-listener"] * count


@pytest.mark.parametrize(("count", "also"), [(1, ""), (2, "also by"), (3, "; "), (5, "and 2 more")])
def test_three_that_block_are_named(count: int, also: str) -> None:
    lines = [tcp("ESTAB", SERVER, f"198.18.0.3:{40000 + n}") for n in range(count)]
    cause = only(told(bind_fails(3.0, "new", *lines)), "bind")
    assert len(cause.evidence) == min(count, 3) and also in cause.text
    assert cause.text.count(" more") == (count > 3)


# --- Who has what is in the way -------------------------------------------------------------------

LISTENS, SHARES = "socket; bind :8000; listen 5", "socket; set SO_REUSEPORT; bind :8000"
TIME_WAIT, ESTAB = tcp("TIME-WAIT", SERVER, CLIENT), tcp("ESTAB", SERVER, CLIENT)
BOUND = tcp("UNCONN", ":8000", more="ino:5")


def cause_of(*lines: str, texts: str = "socket; bind :8000", before: Sequence[Event] = ()) -> Cause:
    return only(told([*before, *bind_fails(3.0, "new", *lines, texts=texts)]), "bind")


def test_what_listens_comes_before_what_is_open_and_that_before_what_is_over() -> None:
    for lines, first in (([ESTAB, LISTEN], "LISTEN"), ([TIME_WAIT, ESTAB], "ESTAB"),
                         ([TIME_WAIT, ESTAB, LISTEN], "LISTEN")):  # fmt: skip
        assert f"blocked by {first} " in cause_of(*lines).text


@pytest.mark.parametrize(
    ("texts", "line", "certain"),
    [
        ("bind :8000", LISTEN, True),  # whatever both had, one of them listens
        ("bind :8000", TIME_WAIT, False),
        (SHARES, LISTEN, True),
        (SHARES, TIME_WAIT, False),
        ("socket; bind :8000", TIME_WAIT, True),
        ("socket; set SO_REUSEADDR; bind :8000", TIME_WAIT, False),
        ("socket; set SO_REUSEADDR; bind :8000", LISTEN, True),
    ],
)
def test_where_nobody_knows_the_options_of_a_socket(texts: str, line: str, certain: bool) -> None:
    cause = cause_of(line, texts=texts)
    assert (cause.certain, "would tell whether they had" in cause.text) == (certain, not certain)


def first(texts: str = LISTENS, process: str = "first", host: str = "server", t: float = 0.5
          ) -> list[Event]:  # fmt: skip
    return calls(t, process, texts, host)


@pytest.mark.parametrize(
    ("before", "of"),
    [
        (first(), ", of first"),
        ([*first(), *first(process="far", host="client", t=0.6)], ", of first"),
        ([*first("socket; set SO_REUSEADDR; bind :8000; listen 5"),
          *first("socket; set SO_REUSEADDR; bind :8000", "idle", t=0.6)], ", of first"),
        ([*first(), *first("socket tcp6; set IPV6_V6ONLY; bind [::]:8000; listen 5", "six",
                           t=0.6)], ", of first"),
        (first(process="new", t=0.5), ""),  # its own earlier one
        (first("socket; bind :8001; listen 5"), ""),
        ([*first(), call(1.0, "first", "close listener", "server")], ""),
    ],
)  # fmt: skip
def test_whose_listener_it_is(before: list[Event], of: str) -> None:
    text = cause_of(LISTEN, before=before).text
    assert f"accept queue 0/5{of}" in text
    assert text.count(", of ") == bool(of) and "closed first" not in text


def test_a_socket_that_is_bound_alone() -> None:
    """As newer versions of ss list it, and by its call."""
    listed = cause_of(BOUND)
    assert (listed.id, "which is bound and does not listen" in listed.text) == ("bind-bound", True)
    by_call = cause_of(before=first("socket; bind :8000"))
    assert "bound (bind :8000, by pid 2) and does not listen" in by_call.text
    assert by_call.evidence == ("first: bind :8000",)


@pytest.mark.parametrize(
    "before",
    [
        [*first("socket"), call(0.7, "first", "bind :8000", "server", errno="EACCES", error="no",
                                local="0.0.0.0:8000")],
        first("socket; bind :8000; connect client:9000"),
        first("socket; set SO_REUSEADDR; bind :8000"),
        first("socket; bind :8000", host="client"),
    ],
)  # fmt: skip
def test_who_is_bound_there_and_is_not_in_the_way(before: list[Event]) -> None:
    wants = "socket; set SO_REUSEADDR; bind :8000"
    assert ids(told([*before, *bind_fails(3.0, "new", texts=wants)]), "bind-bound") == []


def test_a_listen_that_fails_is_not_blocked_by_its_own_bind() -> None:
    events = bind_fails(3.0, "new", BOUND, texts=LISTENS)
    failed = call(events[-2].t, "new", "listen 5", "server", **IN_USE, local="0.0.0.0:8000")
    assert ids(told([*events[:-2], failed, events[-1]])) == []


def test_a_child_of_a_parent_that_has_ended_has_nothing_of_what_is_over() -> None:
    parent = [*first(f"{LISTENS}; accept", "parent"), call(1.0, "parent", "fork", "server",
                                                           result=7),
              ended(2.0, "parent", "server", signal="KILL", left=True)]  # fmt: skip
    assert cause_of(TIME_WAIT, before=parent).id == "bind-time-wait"
    assert cause_of(ESTAB, before=parent).id == "bind-child"


def test_who_shares_its_port_and_who_does_not() -> None:
    shared = first(f"{SHARES}; listen 5")
    assert cause_of(LISTEN, texts=SHARES, before=shared).id == "bind-other-user"
    assert cause_of(LISTEN, before=shared).id == "bind-listener"
    assert cause_of(LISTEN, texts=SHARES, before=first()).id == "bind-listener"


@pytest.mark.parametrize(
    ("old", "new", "cure"), [(1, 0, True), (0, 0, False), (0, 1, False), (1, 1, False)]
)
def test_so_reuseaddr_helps_where_the_outgoing_connection_has_it(
    old: int, new: int, cure: bool
) -> None:
    """Nothing shows how it then blocks one that has it too."""
    there = f"socket; set SO_REUSEADDR {old}; connect client:9000"
    events = calls(0.5, "agent", there, "server", client=SERVER, server="198.18.0.3:9000")
    line = tcp("ESTAB", SERVER, "198.18.0.3:9000")
    fails = bind_fails(3.0, "new", line, texts=f"socket; set SO_REUSEADDR {new}; bind :8000")
    found = said(told([*events, *fails], handshake(0.5015, SERVER, "198.18.0.3:9000")), "bind")
    assert [c.id for c in found] == [] if old and new else ["bind-outgoing"]
    assert any("set SO_REUSEADDR before bind" in c.cure for c in found) is cure


def test_a_child_may_have_inherited_a_socket_that_is_bound_alone() -> None:
    bound = calls(0.5, "first", "socket; bind :8000", "server")
    gone = ended(2.0, "first", "server", exit=0, left=True)
    cause = only(told([*bound, gone, *bind_fails(3.0, "new")]), "bind")
    assert (cause.id, cause.certain) == ("bind-child", True)
    assert "does not listen: a child of first has it open since its main process" in cause.text
