"""`labctl watch`: records of what runs already, by watchers that say what a test has them say."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.backends import Channel, Message
from labctl.backends.netns.here import entering
from labctl.backends.watched import host_names
from labctl.ground.errors import LabError, UsageError
from labctl.judge.annotated import capture
from labctl.judge.recorded import load, scenario_of
from labctl.judge.rejudge import judge
from labctl.judge.result import RunResult
from labctl.lab.watching import NO_CALLS, Watching
from labctl.record.events import (
    AddressEvent,
    CountersEvent,
    HoldersEvent,
    StateEvent,
    TroubleEvent,
)
from labctl.record.holders import described
from labctl.record.store import new_folder
from labctl.reports import render
from labctl.reports.watching import PlainWatch
from labctl.run.watch import GOES_ON, Limits, watch
from labctl.run.workflow import interruptible
from tests.fake import FakeChannel, tcp
from tests.played import Labctl
from tests.sighted import EPOCH, HANDSHAKE, record, seen
from tests.watched import CLIENT, CLOSE_WAIT, DB, LISTENS, SERVER, WEB, FakeWatched

CLAIMS = """\
title: Claims on what was watched
hosts: {web: {run: nginx}, db: {}}
steps: []
expect:
  - sockets: {web: {state: CLOSE-WAIT}}
  - counters: {web: {TcpPassiveOpens: 4}}
  - segments: {from: db, flags: SYN, count: 1}
  - process: {web: running}
"""


def watched(
    tmp_path: Path, fake: FakeWatched, limits: Limits | None = None, calls: bool = False
) -> tuple[list[RunResult], list[str]]:
    """The results of a watch, and what it said."""
    said: list[str] = []

    class Quiet(PlainWatch):
        def say(self, line: str) -> None:
            said.append(line)

    @contextmanager
    def view(_: Watching) -> Iterator[PlainWatch]:
        yield Quiet()

    def folder() -> Path:
        return new_folder(tmp_path, "watch")

    with interruptible():
        return watch(fake, folder, limits or Limits(), view, calls), said


def both(*actions: Callable[[FakeWatched], object]) -> FakeWatched:
    return FakeWatched(actions, web=[WEB, "fd00::2"], db=[DB])


def spoke(fake: FakeWatched) -> None:
    """The database connects to the web server."""
    now = time.monotonic()
    syn = replace(HANDSHAKE[0], at=EPOCH + 1e-4)
    fake.packets("db", record(syn))
    fake.packets("web", record(seen(syn)))
    fake.say("web", "counters", values={"TcpPassiveOpens": 9}, since=now)
    fake.look("web", LISTENS, CLOSE_WAIT)
    held = {"commands": {"42": "nginx"}, "sockets": {"42": {"3": 7, "4": 8}}, "unread": []}
    fake.say("web", "holders", **held)


def test_a_watch_is_a_run(tmp_path: Path) -> None:
    fake = both(spoke)
    (result,), said = watched(tmp_path, fake)
    assert fake.is_down
    assert (result.result, result.reason, result.backend) == ("pass", None, "watch")
    again = load(result.folder)
    assert again.hosts == ("web", "db")
    assert again.history.owners == {WEB: "web", "fd00::2": "web", DB: "db"}
    assert (again.result, again.causes) == ("pass", result.causes)
    assert scenario_of(again)
    assert again.history.lab
    said_first = next(capture(again)).decode(errors="replace")
    assert f"packets from {again.history.lab.started} on" in said_first
    assert "watched since" not in said_first
    look = again.history.sockets["web"]
    assert [described(again.history, look, socket) for socket in look.sockets] == [
        "LISTEN 0.0.0.0:8000, accept queue 0/0, held by web (pid 42, nginx, fd 3)",
        f"CLOSE-WAIT {SERVER} -> {CLIENT}, held by web (pid 42, nginx, fd 4)",
    ]
    assert "SYN seq 0" in render("markdown", [again])
    assert any("CLOSE-WAIT" in line for line in said)


def test_it_is_judged_by_the_claims_of_another_file(tmp_path: Path) -> None:
    (result,), _ = watched(tmp_path, both(spoke))
    claims = tmp_path / "claims.yaml"
    claims.write_text(CLAIMS)
    found = judge(result.folder, claims)
    assert [v.result for v in found] == ["pass", "pass", "pass", "unknown"]
    assert found[-1].actual == NO_CALLS
    assert not found[-1].processes
    claims.write_text(CLAIMS.replace("CLOSE-WAIT", "LAST-ACK"))
    assert judge(result.folder, claims)[0].result == "fail"
    assert judge(result.folder) == []


def test_claims_have_one_case(tmp_path: Path) -> None:
    (result,), _ = watched(tmp_path, both())
    claims = tmp_path / "claims.yaml"
    claims.write_text(CLAIMS + "params: {n: 1}\nvariants: [{n: 1}, {n: 2}]\n")
    with pytest.raises(UsageError, match="2 cases, and none is the run's"):
        judge(result.folder, claims)


SYN_SENT = replace(HANDSHAKE[0], at=EPOCH + 1e-4)


@pytest.mark.parametrize("calls", [False, True])
def test_what_others_sent_or_got_nobody_knows(tmp_path: Path, calls: bool) -> None:
    """A segment to somebody who is not watched is not lost, and one from there not injected."""
    back = replace(seen(HANDSHAKE[1]), at=EPOCH + 0.4)

    def connect(fake: FakeWatched) -> None:
        fake.packets("db", record(SYN_SENT), record(back))

    fake = FakeWatched([connect, lambda _: None], db=[DB])
    (result,), _ = watched(tmp_path, fake, calls=calls)
    again = load(result.folder)
    syn, answer = again.history.segments()
    assert (syn.sender, syn.receiver, syn.lost, syn.pending) == ("db", None, False, False)
    assert (answer.sender, answer.receiver, answer.injected) == (None, "db", False)
    claims = tmp_path / "claims.yaml"
    claims.write_text(
        "title: t\nhosts: {db: {}}\nsteps: []\nexpect:\n"
        "  - segments: {from: db, flags: SYN, lost: true, count: 0}\n"
    )
    (verdict,) = judge(result.folder, claims)
    assert verdict.result == "unknown"
    assert verdict.actual.endswith("watch it, too")


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_missed_while_a_host_started_again_is_not_lost(
    tmp_path: Path, restarted: bool
) -> None:
    def restart(fake: FakeWatched) -> None:
        syn = replace(seen(SYN_SENT), at=EPOCH if restarted else EPOCH + 0.4)
        fake.packets("db", record(syn))  # and nobody captured it at the other end
        fake.restarted = ["web"] if restarted else []

    (result,), _ = watched(tmp_path, both(restart, lambda _: None, lambda _: None))
    (syn,) = load(result.folder).history.segments()
    assert syn.lost != restarted


def test_what_is_started_again_is_watched_on(tmp_path: Path) -> None:
    """Its counters begin anew, and count on; so what came before counts too."""
    before: list[Channel] = []

    def restart(fake: FakeWatched) -> None:
        before.append(fake.channels["web"])
        fake.counters = {"TcpActiveOpens": 0, "TcpPassiveOpens": 0}
        fake.hosts["web"] = ["198.18.0.9"]
        fake.restarted = ["web"]

    def work(fake: FakeWatched) -> None:
        fake.look("web", LISTENS, TcpPassiveOpens=2)

    fake = both(lambda f: f.look("web", LISTENS, TcpPassiveOpens=6), restart, work)
    (result,), said = watched(tmp_path, fake)
    history = load(result.folder).history
    assert history.growth("web", "TcpPassiveOpens") == 1 + 2
    assert fake.detached == before
    assert "web was started again, and is watched on" in said
    assert [e.address for e in history.events if isinstance(e, AddressEvent)] == ["198.18.0.9"]
    assert history.owners["198.18.0.9"] == "web"
    assert {probe for host, probe in history.trouble if host == "web"} == {
        "calls", "capture", "loopback", "trace",
    }  # fmt: skip


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_what_ends_as_it_is_started_again_may_be_started_once_more(
    tmp_path: Path, how: str
) -> None:
    def restart(fake: FakeWatched) -> None:
        fake.fails, fake.tells = "it has ended" if how == "refused" else "", False
        fake.restarted = ["web"]

    def once_more(fake: FakeWatched) -> None:
        fake.fails, fake.tells = "", True
        fake.restarted = ["web"]

    (result,), said = watched(tmp_path, both(restart, once_more))
    assert result.result == "pass"
    told = [e.text for e in result.history.events if isinstance(e, TroubleEvent)]
    assert any("has ended" in text or "it says why" in text for text in told)
    assert len([line for line in said if "started again" in line]) == 1


@pytest.mark.parametrize("ended", [False, True])
def test_what_is_added_is_watched_in_a_record_of_its_own(tmp_path: Path, ended: bool) -> None:
    """Unless it has ended by then; and it may come once more. One that is started again at once is
    no part of the record before, either."""
    late = "198.18.0.4"

    def come(fake: FakeWatched) -> None:
        fake.hosts["cache"], fake.coming = [late], ["cache"]
        fake.tells = not ended
        fake.restarted = [] if ended else ["cache"]

    def again(fake: FakeWatched) -> None:
        if ended:
            assert "cache" not in fake.hosts
            come(fake)
            fake.tells = True

    def work(fake: FakeWatched) -> None:
        fake.look("cache", tcp("LISTEN", ":6379", more="ino:9"))
        fake.look("web", LISTENS)

    results, said = watched(tmp_path, both(spoke, come, again, work))
    first, second = (load(result.folder) for result in results)
    assert (first.hosts, second.hosts) == (("web", "db"), ("web", "db", "cache"))
    assert any("has no cache, which came later: the next record begins" in line for line in said)
    assert second.history.owners[late] == "cache"
    look = second.history.sockets["cache"]
    assert [str(socket.state) for socket in look.sockets] == ["LISTEN"]
    assert judge(first.folder) == judge(second.folder) == []


def test_a_long_watch_begins_new_records(tmp_path: Path) -> None:
    """Each is whole: it begins with all counters and with a look, and its times are its own."""
    much = tuple(tcp("TIME-WAIT", SERVER, f"{DB}:{n}") for n in range(1000, 1100))

    def traffic(fake: FakeWatched) -> None:
        fake.look("web", *much, TcpPassiveOpens=fake.counters["TcpPassiveOpens"] + 1)
        fake.counters["TcpPassiveOpens"] += 1

    fake = both(*[traffic] * 4)
    results, said = watched(tmp_path, fake, Limits(most_bytes=6000, kept=2))
    assert len(results) == 2
    assert sorted(tmp_path.iterdir()) == sorted(r.folder for r in results)
    assert len([line for line in said if "is full" in line]) > 2
    for number, result in enumerate(results):
        again = load(result.folder)
        assert again.result == "pass"
        assert again.history.now <= result.seconds
        assert {e.host for e in again.history.events if isinstance(e, CountersEvent)} == {
            "web", "db",
        }  # fmt: skip
        assert again.history.sockets.keys() == {"web", "db"}
        assert (GOES_ON in (again.reason or "")) == (number == 0)
        assert judge(result.folder) == []
        said_first = next(capture(again)).partition(b"labctl")[0].decode(errors="replace")
        assert again.history.lab
        assert f"packets from {again.history.lab.started} on\nwatched since 20" in said_first
    last = load(results[-1].folder).history
    assert last.growth("web", "TcpPassiveOpens") == 0  # all of it grew in records before


@pytest.mark.parametrize(
    ("ports", "kept"), [((), {"80", "81", "443"}), ((80,), {"80"}), ((443, 81), {"81", "443"})]
)
def test_a_tracer_knows_no_ports(tmp_path: Path, ports: Sequence[int], kept: set[str]) -> None:
    """So of what it tells, the rest is left out. What it has at the end is recorded too."""

    def moved(local: str, remote: str) -> None:
        move = {"old": "ESTAB", "new": "FIN-WAIT-1", "local": local, "remote": remote}
        tracer.say(kind="state", t=time.monotonic(), **move)

    def obey(message: Message) -> None:
        if message["do"] == "flush":
            moved(f"{WEB}:443", f"{DB}:7")
        tracer.say(kind="reply", id=message["id"], t=time.monotonic())

    tracer = FakeChannel(obey)
    fake = both(lambda _: moved(f"{WEB}:80", f"{DB}:9"), lambda _: moved(f"{DB}:8", f"{WEB}:81"))
    fake.tracer, fake.ports = tracer, ports
    (result,), _ = watched(tmp_path, fake)
    states = [e for e in load(result.folder).history.events if isinstance(e, StateEvent)]
    ends = {end.rpartition(":")[2] for e in states for end in (e.local, e.remote)}
    assert ends & {"80", "81", "443"} == kept
    assert result.history.watched_by("trace")


def test_a_watcher_that_ends(tmp_path: Path) -> None:
    (result,), _ = watched(tmp_path, both(spoke, lambda f: f.channels["web"].close()))
    assert (result.result, result.reason) == ("error", "the watcher of web ended: it says why")
    assert load(result.folder).history.sockets.keys() == {"web", "db"}


def test_a_watcher_that_breaks(tmp_path: Path) -> None:
    (result,), _ = watched(tmp_path, both(lambda f: f.say("db", "broken", text="OSError: no")))
    assert result.reason == "the watcher of db broke: OSError: no"


def test_a_watcher_that_never_begins(tmp_path: Path) -> None:
    fake = both()
    fake.tells = False
    with pytest.raises(LabError, match="the watcher of web ended: it says why"):
        watched(tmp_path, fake)
    assert fake.is_down


def test_two_hosts_that_share_a_network(tmp_path: Path) -> None:
    fake = FakeWatched([], web=[WEB], db=[WEB])
    with pytest.raises(UsageError, match=f"web and db both have the address {WEB}"):
        watched(tmp_path, fake)
    assert fake.is_down
    assert not [*tmp_path.iterdir()]


def test_a_host_without_addresses_is_a_host(tmp_path: Path) -> None:
    (result,), _ = watched(tmp_path, FakeWatched([], web=[]))
    assert load(result.folder).hosts == ("web",)


def test_a_signal_ends_it_and_loses_nothing(tmp_path: Path) -> None:
    """What was said by then is recorded, though the signal comes first."""

    def interrupt(fake: FakeWatched) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        spoke(fake)

    fake = both(interrupt, lambda _: pytest.fail("it goes on"))
    (result,), _ = watched(tmp_path, fake)
    assert (result.result, result.reason) == ("pass", None)
    assert any(isinstance(e, HoldersEvent) for e in result.history.events)


def test_it_ends_when_its_time_is_over(tmp_path: Path) -> None:
    turns: queue.SimpleQueue[None] = queue.SimpleQueue()
    fake = both(*[lambda _: turns.put(None)] * 1000)
    (result,), _ = watched(tmp_path, fake, Limits(seconds=0.6))
    assert result.result == "pass"
    assert result.seconds >= 0.5
    assert 0 < turns.qsize() < 1000


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["web"], ["web"]),
        (["shop_web_1", "shop.db"], ["shop-web-1", "shop-db"]),
        (["a_b", "a.b", "A-B"], ["a-b", "a-b-2", "A-B-3"]),
        (["42", "localhost", "___"], ["host-42", "host-localhost", "host"]),
        (["x" * 80], ["x" * 50]),
    ],
)
def test_names_of_hosts(wanted: list[str], names: list[str]) -> None:
    assert host_names(wanted) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to watch"),
        (["--here", "--container", "web"], "one at a time"),
        (["--here", "--for", "soon"], "--for soon: no duration"),
        (["--here", "--for", "0s"], "--for 0s: no duration"),
        (["--here", *["--port", "80"] * 101], "name 100 at most"),
        (["--pid", "0"], "0 is not in the range"),
        (["--here", "--port", "70000"], "allowed: 1 to 65535"),
    ],
)
def test_mistakes(labctl: Labctl, words: list[str], message: str) -> None:
    status, _, said = labctl("watch", *words)
    assert (status, message in said) == (2, True), said


@pytest.mark.parametrize(("uid", "hint"), [(0, "keeps this root out"), (1000, "run it as root")])
def test_a_process_that_nobody_may_enter(
    uid: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "samefile", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(UsageError, match=hint):
        entering(1)
