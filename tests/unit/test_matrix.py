"""Places, and what differs between them."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from labctl.cli.commands import main
from labctl.cli.matrix import matrix
from labctl.ground.errors import UsageError
from labctl.judge.check import Verdict
from labctl.language.facts import NO_FACTS, Facts, Range
from labctl.record.events import ExecEvent
from labctl.record.store import RunFolder
from labctl.reports import html, markdown
from labctl.reports.comparison import ABSENT, Comparison, Row, compare
from labctl.reports.progress import Screen
from labctl.reports.terminal import print_comparison
from labctl.run.matrix import LOOK, SYSCTLS, Matrix
from labctl.run.orders import Orders
from labctl.run.places import NEVER_RUN, NOT_RUN, Place, Seen, github, places
from tests.fake import FakeBackend, play, scenario
from tests.golden import HERE as GOLDEN
from tests.golden import agrees
from tests.unit.test_guests_fail import Machine

WAITED = "server: no connection within 4.5..7 s of killed"
NASTY = "</td><script>|`[red]\x1b[31m"

# --- Places ---------------------------------------------------------------------------------------


def chosen(arguments: list[str]) -> list[Place]:
    """The places of a command line."""
    above = click.Context(main, **main.context_settings)
    options = matrix.make_context("matrix", arguments, above).params
    return places(options["backend"], options["os"], options["kernel"], options["virtual_time"])


def test_each_option_adds_places() -> None:
    found = places(["netns"], ["debian:11, debian:12"], [], False)
    assert [place.name for place in found] == ["docker debian:11", "docker debian:12", "netns"]
    found = places(["netns"], [], ["6.1,7.3", "6.1"], True)
    assert [place.name for place in found] == [
        "netns", "kernel 6.1, virtual time", "kernel 7.3, virtual time",
    ]  # fmt: skip
    assert [place.name for place in places([], [], [], False)] == ["docker debian:12", "netns"]
    assert places(["docker"], [], [], False) == [Place("docker", os="debian:12")]
    assert places(["docker"], ["debian:11"], [], False) == [Place("docker", os="debian:11")]


def test_kernels_and_docker_run_with_each_system() -> None:
    systems = ["debian:11,debian:13"]
    found = places([], systems, ["5.10,7.3"], False)
    assert [place.name for place in found] == [
        "kernel 5.10, debian:11", "kernel 5.10, debian:13",
        "kernel 7.3, debian:11", "kernel 7.3, debian:13",
    ]  # fmt: skip
    assert places(["docker"], systems, ["6.1"], True) == [
        Place("docker", "debian:11"), Place("docker", "debian:13"),
        Place("netns", "debian:11", "6.1", True), Place("netns", "debian:13", "6.1", True),
    ]  # fmt: skip


def test_docker_alone_has_what_is_not_debian() -> None:
    assert [place.name for place in places(["docker"], ["debian:11,alpine:3.20"], ["6.1"], False)] \
        == ["docker debian:11", "docker alpine:3.20", "kernel 6.1, debian:11"]  # fmt: skip
    found = places(["docker"], ["alpine:3.20"], ["6.1"], False)
    assert [place.name for place in found] == ["docker alpine:3.20", "kernel 6.1"]


def test_a_system_has_a_guest_once_by_whatever_name() -> None:
    found = places([], ["debian:11,debian:bullseye,debian:11-slim"], ["6.1"], False)
    assert [place.name for place in found] == ["kernel 6.1, debian:11-slim"]


@pytest.mark.parametrize(
    ("backends", "systems", "kernels", "virtual", "said"),
    [
        (["netns,dokcer"], [], [], False, "did you mean 'docker'?"),
        (["netns"], [], [], True, "--virtual-time needs a guest; choose its kernel: --kernel NAME"),
        ([], ["alpine:3.20"], ["6.1"], False, "allowed: debian:11, debian:12, debian:13, "),
    ],
)
def test_bad_places(
    backends: list[str], systems: list[str], kernels: list[str], virtual: bool, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        places(backends, systems, kernels, virtual)
    assert said in str(caught.value)


def test_github_has_the_options_of_each_place_alone() -> None:
    wanted = places(["netns,docker"], ["debian:11"], ["/boot/my kernel"], True)
    entries = github(wanted)["include"]
    assert [entry["args"] for entry in entries] == [
        "--os debian:11", "--backend netns",
        "--kernel '/boot/my kernel' --os debian:11 --virtual-time",
    ]  # fmt: skip
    for place, entry in zip(wanted, entries, strict=True):
        assert chosen(shlex.split(entry["args"])) == [place]
    assert [entry["guest"] for entry in entries] == [False, False, True]
    assert len({entry["slug"] for entry in entries}) == 3


# --- What differs ---------------------------------------------------------------------------------


def verdict(
    what: str, actual: str, result: Any = "pass", line: int = 1, measured: Facts = NO_FACTS
) -> Verdict:
    subject, _, expected = what.partition(": ")
    return Verdict(
        result, what, expected, actual, 1.0, f"scenarios/x.yaml:{line}",
        subject=subject, measured=measured,
    )  # fmt: skip


Counted = dict[str, dict[str, int]]


def seen(name: str, *verdicts: Verdict, counted: Counted | None = None, **more: Any) -> Seen:
    """A place where one case had these verdicts."""
    result = "fail" if any(v.result == "fail" for v in verdicts) else "pass"
    run = {
        "scenario": "x", "variant": {"old": "plain"}, "result": result,
        "verdicts": [v.as_json() for v in verdicts], "counted": counted or {},
    }  # fmt: skip
    environment = {"kernel": "6.1.0", "os": "Debian", "engine": None}
    found = {"version": "1", "result": result, "runs": [run]}
    return Seen(**{"name": name, "reason": None, "environment": environment,
                   "document": found, "sysctls": {}, **more})  # fmt: skip


def older(name: str, *verdicts: Verdict) -> Seen:
    """The same as an older version wrote it: all that is told, is told in words."""
    place = seen(name, *verdicts)
    for run in place.document["runs"]:
        del run["counted"]
        for entry in run["verdicts"]:
            for key in ("subject", "about", "wanted", "measured"):
                del entry[key]
    return place


def absent(name: str, reason: str) -> Seen:
    return Seen(name, reason, {}, {"version": "1", "result": "skip", "runs": []}, {})


def rows(kind: str, *found: Seen) -> list[Row]:
    return [row for row in compare(found).rows if row.kind == kind]


def test_a_verdict_differs_and_its_cell_says_what_was_seen() -> None:
    claim = "server: EADDRINUSE within 5 s"
    (row,) = rows(
        "claim",
        seen("a", verdict(claim, "bind: EADDRINUSE")),
        seen("b", verdict(claim, "bind: ok", "fail")),
    )
    assert row.cells == ("pass", "fail: bind: ok")
    assert row.differs
    assert row.what == f"{claim} (line 1)"


def test_what_an_older_version_did_not_tell_is_left_out() -> None:
    claim = verdict("client: ESTAB", "ESTAB after 5.100 s", measured=after(5.1, 5.1))
    found = compare([seen("a", claim), older("b", claim)])
    assert [(row.kind, row.cells) for row in found.rows] == [
        ("result", ("pass", "pass")), ("claim", ("pass", "pass")), ("duration", ("5.10 s", "")),
    ]  # fmt: skip


def test_what_passes_may_see_different_things() -> None:
    claim = "client: ESTAB"
    (row,) = rows(
        "claim", seen("a", verdict(claim, "ESTAB")), seen("b", verdict(claim, "ESTAB recv-q 3"))
    )
    assert not row.first


def test_what_fails_everywhere_does_not_differ_but_comes_first() -> None:
    claim = verdict("client: ESTAB", "LISTEN", "fail")
    (row,) = rows("claim", seen("a", claim), seen("b", claim))
    assert not row.differs
    assert row.first


def test_claims_after_the_one_that_ended_the_steps_are_no_difference() -> None:
    first, then = verdict("client: ESTAB", "ESTAB"), verdict("client: LISTEN", "LISTEN", line=2)
    assert rows("claim", seen("a", first, then), seen("b", first))[1].cells == ("pass", "")
    assert not rows("claim", seen("a", first, then), seen("b", first))[1].differs


def test_claims_that_are_alike_are_told_apart() -> None:
    claim = verdict("client: ESTAB", "ESTAB")
    found = rows("claim", seen("a", claim, claim))
    assert [row.what for row in found] == [
        "client: ESTAB (line 1)", "client: ESTAB (line 1) #2"
    ]  # fmt: skip


def after(low: float, high: float) -> Facts:
    return Facts(after_seconds=Range(low, high))


def lasted(low: float, high: float | None) -> Facts:
    return Facts(lasted_seconds=Range(low, high))


@pytest.mark.parametrize(
    ("one", "other", "cells", "differs"),
    [
        (after(5.14, 5.181), after(5.6, 5.6), ("5.18 s", "5.60 s"), 0),
        (after(5.181, 5.181), after(5.8, 5.8), ("5.18 s", "5.80 s"), 1),
        (after(5.0, 5.181), after(5.8, 5.8), ("5.00..5.18 s", "5.80 s"), 1),
        (after(60.1, 60.1), after(61.8, 61.8), ("60.10 s", "61.80 s"), 0),
        (lasted(4.974, 5.293), lasted(5.1, 5.1), ("4.97..5.29 s", "5.10 s"), 0),
        (lasted(4.974, 5.293), lasted(6.1, 6.1), ("4.97..5.29 s", "6.10 s"), 1),
        (lasted(4.974, 5.293), lasted(9.0, None), ("4.97..5.29 s", "9.00 s or more"), 1),
        (lasted(4.974, 5.293), NO_FACTS, ("4.97..5.29 s", ""), 0),
    ],
)
def test_durations(one: Facts, other: Facts, cells: tuple[str, ...], differs: int) -> None:
    places = (seen("abc"[n], verdict("x: y", "", measured=m)) for n, m in enumerate((one, other)))
    (row,) = rows("duration", *places)
    assert row.cells == cells
    assert row.differs == bool(differs)


def test_moments_are_no_durations() -> None:
    short = verdict("a: ESTAB within 5 s", "ESTAB", measured=after(0.02, 0.04))
    assert not rows("duration", seen("a", short))


def test_counters_differ_where_one_grew_and_another_did_not() -> None:
    again, abort = "TcpRetransSegs", "TcpExtTCPAbortOnClose"
    found = rows(
        "counter",
        seen("a", counted={"server": {again: 1, abort: 1}}),
        seen("b", counted={"server": {again: 7}}),
        older("c"),
    )
    assert [(row.what, row.cells, row.differs) for row in found] == [
        (f"server: {again}", ("1", "7", ""), False), (f"server: {abort}", ("1", "0", ""), True),
    ]  # fmt: skip


def test_a_sysctl_that_a_kernel_does_not_have_differs() -> None:
    (row,) = rows(
        "sysctl", seen("a", sysctls={"net.x": "1"}), seen("b", sysctls={"net.y": "2"}), seen("c")
    )[:1]
    assert (row.cells, row.differs) == (("1", ABSENT, ""), True)


def test_a_place_that_can_not_be_had_is_no_difference() -> None:
    found = compare([seen("a", verdict("client: ESTAB", "ESTAB")), absent("b", "no engine")])
    assert [(row.cells, row.first) for row in found.rows] == [
        (("pass", "skip"), False), (("pass", ""), False),
    ]  # fmt: skip


def example() -> Comparison:
    one = seen(
        "docker debian:12",
        verdict(WAITED, "no sockets after 5.181 s", measured=after(5.181, 5.181)),
        verdict("client: ESTAB", "ESTAB", line=2),
        sysctls={"net.ipv4.tcp_fin_timeout": "60", "net.ipv4.tcp_rmem": "4096 131072 33554432"},
    )  # fmt: skip
    other = seen(
        "kernel 6.1, virtual time",
        verdict(WAITED, "no sockets after 6.900 s", measured=after(6.9, 6.9)),
        verdict("client: ESTAB", NASTY, "fail", 2),
        counted={"server": {"TcpRetransSegs": 2}},
        sysctls={"net.ipv4.tcp_fin_timeout": "60", "net.ipv4.tcp_rmem": "4096 131072 6291456"},
    )  # fmt: skip
    return compare([one, other, absent("kernel nosuch", f"not known; {NASTY}")])


def test_the_table() -> None:
    out = io.StringIO()
    print_comparison(example(), Console(file=out, width=110, highlight=False))
    assert agrees(GOLDEN / "reports" / "places.txt", out.getvalue())


def test_markdown() -> None:
    text = markdown.comparison(example())
    assert text.count("<script>") == text.count("\\<script>") > 0
    assert "\x1b" not in text
    assert agrees(GOLDEN / "reports" / "places.md", text)


def test_html() -> None:
    text = html.comparison(example())
    assert "<script>" not in text
    assert "\x1b" not in text
    assert agrees(GOLDEN / "reports" / "places.html", text)


def test_json() -> None:
    text = json.dumps(example().as_json(), indent=1)
    assert agrees(GOLDEN / "reports" / "places.json", text + "\n")


def test_nothing_differs() -> None:
    same = verdict("client: ESTAB", "ESTAB")
    found = compare([seen("a", same), seen("b", same)])
    out = io.StringIO()
    print_comparison(found, Console(file=out, width=110))
    for text in (out.getvalue(), markdown.comparison(found), html.comparison(found)):
        assert "Nothing differs, and nothing failed." in text


def words_of(found: Comparison) -> str:
    """What the table says, with its width out of the way."""
    out = io.StringIO()
    print_comparison(found, Console(file=out, width=300))
    return out.getvalue()


def test_what_was_not_run_is_no_agreement() -> None:
    """Neither in words nor in the status; it is shown first."""
    same = verdict("client: ESTAB", "ESTAB")
    document = {"version": "1", "result": "unknown", "runs": []}
    for blank in (NOT_RUN, NEVER_RUN):
        other = Seen("b", None, {}, document, {}, blank)
        found = compare([seen("a", same), other])
        (row,) = [row for row in found.rows if row.kind == "result"]
        assert (row.cells, row.first) == (("pass", blank), True)
        text = words_of(found)
        assert "Nothing differs" not in text
        assert text.index("What differs") < text.index(blank)
        for text in (markdown.comparison(found), html.comparison(found)):
            first = text[text.index("What differs") : text.index("Everything")]
            assert blank in first


def test_what_could_not_be_run_is_said() -> None:
    found = compare([seen("a", verdict("client: ESTAB", "ESTAB")), absent("docker", "no engine")])
    said = "Nothing differs, and nothing failed. Not everything could be run: see docker."
    assert said in words_of(found)
    found = compare([absent("a", "no engine"), absent("b", "no QEMU")], [("x", "x.yaml")])
    assert "Nothing could be run at any of these places." in words_of(found)
    skipped = seen("a")
    skipped.document["runs"][0].update(result="skip", reason="no root")
    assert "Nothing could be run at any of these places." in words_of(compare([skipped]))


def test_cases_with_one_label_stay_apart() -> None:
    """Two files may have the same name: a failure of one is none of the other."""
    good, bad = seen("a", verdict("c: ESTAB", "ESTAB")), seen("a", verdict("c: ESTAB", "", "fail"))
    runs = [good.document["runs"][0], bad.document["runs"][0]]
    for run, source in zip(runs, ("one/x.yaml", "two/x.yaml"), strict=True):
        run["source"] = source
    place = Seen("a", None, {}, {"version": "1", "result": "fail", "runs": runs}, {})
    cases = [("x (old plain)", "one/x.yaml"), ("x (old plain)", "two/x.yaml")]
    for wanted in (cases, []):
        found = [row for row in compare([place], wanted).rows if row.kind == "result"]
        assert [(row.case, row.cells) for row in found] == [
            ("x (old plain), one/x.yaml", ("pass",)), ("x (old plain), two/x.yaml", ("fail",)),
        ]  # fmt: skip


# --- What is known of a place ---------------------------------------------------------------------

CASE = """\
title: A case
hosts: {server: {}, client: {}}
steps:
  - expect: {sockets: {server: none}}
"""


def test_what_is_known_of_a_place(tmp_path: Path) -> None:
    """The latest run, whatever came of it; and none of what has another text."""
    case = scenario(CASE)
    matrix, place = Matrix([case], {}, tmp_path), Place("netns")
    folder = matrix.folder(place)
    assert matrix.seen(place).reason == "not run yet; leave --show out"
    assert (matrix.seen(place).result, matrix.seen(place).blank) == ("unknown", "never run")
    play(CASE.replace("A case", "Another"), FakeBackend(), folder)
    assert matrix.seen(place).document["runs"] == []

    judged = play(case, FakeBackend(), folder)
    later = play(case, FakeBackend({"up": lambda lab: lab.dies("server")}), folder)
    assert (judged.result, later.result) == ("pass", "error")
    (run,) = matrix.seen(place).document["runs"]
    assert run == later.as_json()
    assert matrix.seen(place).result == "error"
    shutil.rmtree(later.folder)
    (run,) = matrix.seen(place).document["runs"]
    assert run == judged.as_json()

    cut_short = folder / "cut-short"
    cut_short.mkdir()
    (cut_short / "result.json").write_text("{")
    assert matrix.seen(place).result == "pass"


def test_a_place_is_looked_at(tmp_path: Path) -> None:
    matrix, place = Matrix([scenario(CASE)], {}, tmp_path), Place("docker", os="debian:12")
    said = "ipv4/tcp_rmem:4096\t131072\t6291456\nipv4/tcp_not_wanted:1\ncore/somaxconn:4096\n"
    look = play(LOOK, FakeBackend(), matrix.folder(place))
    event = ExecEvent(0.0, "server", "", 2, said)
    with RunFolder(look.folder, LOOK) as record:
        record.add(event)
    found = matrix.seen(place)
    assert found.sysctls == {
        "net.core.somaxconn": "4096", "net.ipv4.tcp_rmem": "4096 131072 6291456",
    }  # fmt: skip
    assert set(found.sysctls) <= set(SYSCTLS)
    assert found.reason is None
    assert (found.result, found.document["runs"], found.blank) == ("unknown", [], "not run")


@pytest.mark.usefixtures("qemu_is_asked")
@pytest.mark.skipif(sys.platform != "linux", reason="guests need Linux's setpriv")
@pytest.mark.parametrize(
    ("wrong", "wanted", "why"),
    [("no program", "skip", "can't be started"), ("panic", "error", "does not boot in QEMU")],
)
def test_a_place_is_what_its_look_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, wanted: str, why: str
) -> None:
    """Where a lab failed, that is no place that can't be had."""
    guest = Machine(tmp_path)
    for name, value in guest.variables(wrong).items():
        monkeypatch.setenv(name, value)
    if wrong == "no program":
        monkeypatch.setenv("PATH", str(tmp_path))
    case = scenario(CASE)
    matrix, place = Matrix([case], {}, tmp_path), Place("netns", kernel=str(guest.kernel))
    matrix.fill(place, Orders(Screen()))
    found = matrix.seen(place)
    assert (found.result, found.blank) == (wanted, wanted)
    assert why in (found.reason or "")
    kept = json.loads((matrix.folder(place) / "result.json").read_text())
    assert kept["result"] == wanted
    # What was run before counts where all is there.
    play(case, FakeBackend(), matrix.folder(place))
    assert (matrix.seen(place).result, matrix.seen(place).reason) == ("pass", None)


def test_the_same_text_in_two_files(tmp_path: Path) -> None:
    """Each file has its own result, and what ran of one is missing of the other."""
    one, two = (replace(scenario(CASE), source=f"{name}/x.yaml") for name in ("one", "two"))
    matrix, place = Matrix([one, two], {}, tmp_path), Place("netns")
    play(one, FakeBackend(), matrix.folder(place))
    (run,) = matrix.seen(place).document["runs"]
    assert run["source"] == "one/x.yaml"
    assert matrix.seen(place).result == "unknown"
    alone = Matrix([two], {}, tmp_path)
    (run,) = alone.seen(place).document["runs"]
    assert run["source"] == "two/x.yaml", "by itself a file may have been moved"


def test_the_newest_is_what_began_last(tmp_path: Path) -> None:
    """Not what was copied last."""
    case = scenario(CASE)
    matrix, place = Matrix([case], {}, tmp_path), Place("netns")
    old, new = (play(case, FakeBackend(), matrix.folder(place)) for _ in range(2))
    for run, started in ((old, "2026-01-01T00:00:00Z"), (new, "2026-01-02T00:00:00Z")):
        path = run.folder / "result.json"
        document = json.loads(path.read_text())
        document["runs"][0]["started"] = started
        path.write_text(json.dumps(document))
    os.utime(old.folder / "result.json")
    (found,) = matrix.seen(place).document["runs"]
    assert found["dir"] == str(new.folder)


def test_places_have_folders_of_their_own(tmp_path: Path) -> None:
    names = ["6.1", "6.1-rc1", "6.1_rc1", "6.1+rc1", "/boot/6.1/rc1", "/boot/6.1-rc1"]
    found = [Place("netns", kernel=name) for name in names]
    found += [Place("docker", name) for name in ("debian:12", "debian-12", "d/e:1", "d-e:1")]
    assert len({Matrix([], {}, tmp_path).folder(place) for place in found}) == len(found)
    assert Place("docker", "debian:12").slug == "docker-debian-12"
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", place.slug) for place in found)


def test_params_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {Matrix([], s, tmp_path).folder(Place("netns")) for s in ({}, {"a": "1"}, {"a": "2"})}
    assert len(folders) == 3
