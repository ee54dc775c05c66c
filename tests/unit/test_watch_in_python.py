"""`labctl.watch`: claims of people's own tests on what runs already, by watchers that say what a
test has them say."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest

import labctl
from labctl.ground.errors import LabError, UsageError
from labctl.judge.recorded import load
from labctl.judge.rejudge import judge
from labctl.language.scenario import load as load_scenario
from tests.fake import tcp
from tests.sighted import EPOCH, HANDSHAKE, record
from tests.watched import CLIENT, CLOSE_WAIT, DB, LISTENS, SERVER, WEB, FakeWatched

HERE = "tests/unit/test_watch_in_python.py"


def both() -> FakeWatched:
    return FakeWatched([], web=[WEB], db=[DB])


def seeing(fake: FakeWatched, out: Path) -> labctl.Watch:
    return labctl.Watch(nullcontext(fake), out)


def result(folder: Path) -> dict[str, Any]:
    (found,) = json.loads((folder / "result.json").read_text())["runs"]
    assert isinstance(found, dict)
    return found


def test_a_watch_of_ones_own(tmp_path: Path) -> None:
    fake = both()
    with seeing(fake, tmp_path) as seen:
        fake.look("web", LISTENS)
        seen.wait(sockets={"web": "LISTEN"})
        syn = replace(HANDSHAKE[0], at=EPOCH + 0.05)  # after the record began
        fake.packets("db", record(syn))
        fake.look("web", LISTENS, CLOSE_WAIT, TcpPassiveOpens=9)
        seen.wait({"sockets": {"web": "CLOSE-WAIT"}}, within="5s", as_="half closed")
        seen.expect(counters={"web": {"TcpPassiveOpens": 4}})
        seen.snapshot("now")
        seen.sleep("100ms")
        seen.note("a remark")
        assert [str(socket.state) for socket in seen.sockets("web")] == ["LISTEN", "CLOSE-WAIT"]
        assert [segment.sender for segment in seen.segments(flags="SYN")] == ["db"]
    assert fake.is_down
    assert {event.host for event in seen.events(labctl.SocketsEvent)} == {"web", "db"}
    found = result(seen.folder)
    assert (found["result"], found["scenario"], found["backend"]) == (
        "pass", "test_a_watch_of_ones_own", "watch",
    )  # fmt: skip
    assert all(v["source"].startswith(f"{HERE}:") for v in found["verdicts"])
    (again,) = load_scenario(seen.folder / "scenario.yaml")
    assert [step.verb for step in again.steps] == [
        "wait", "wait", "expect", "snapshot", "sleep", "note"
    ]  # fmt: skip
    assert [v.result for v in judge(seen.folder)] == ["pass"] * 3
    assert load(seen.folder).hosts == ("web", "db")


def test_a_claim_that_does_not_hold(tmp_path: Path) -> None:
    fake = both()
    with pytest.raises(labctl.NotPassed) as caught:
        with seeing(fake, tmp_path) as seen:
            fake.look("web", LISTENS, CLOSE_WAIT)
            seen.wait(sockets={"web": "LAST-ACK"}, within="10ms")
    assert [verdict.result for verdict in caught.value.verdicts] == ["fail"]
    first, *more = str(caught.value).splitlines()
    assert first.startswith(f"{HERE}:")
    assert "web: expected LAST-ACK within" in first
    assert any(line.startswith("    CLOSE-WAIT ") for line in more)
    assert f" report {seen.folder}" in more[-1]
    (ladder,) = caught.value.__notes__
    assert "✗ web: LAST-ACK" in ladder
    assert result(seen.folder)["result"] == "fail"
    assert [v.result for v in judge(seen.folder)] == ["fail"]
    assert fake.is_down


def test_a_failing_claim_has_the_causes(tmp_path: Path) -> None:
    """As those of a lab have: here, who has not closed its end."""
    fake = both()
    with pytest.raises(labctl.NotPassed, match=r"\nWhy \[1\]: .*CLOSE-WAIT"):
        with seeing(fake, tmp_path) as seen:
            fake.look("db", tcp("FIN-WAIT-2", CLIENT, SERVER))
            fake.look("web", LISTENS, CLOSE_WAIT)
            seen.wait(sockets={"web": "CLOSE-WAIT"})
            seen.expect(sockets={"web": "none"})


def test_another_exception_is_in_the_record(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        with seeing(both(), tmp_path) as seen:
            _ = 1 / 0
    assert result(seen.folder)["reason"] == "ZeroDivisionError: division by zero"
    assert f" report {seen.folder}" in caught.value.__notes__[0]


def test_one_host_alone(tmp_path: Path) -> None:
    fake = FakeWatched([], web=[WEB])
    with seeing(fake, tmp_path) as seen:
        fake.look("web", LISTENS)
        seen.wait(sockets={"web": "LISTEN"})
    assert [v.result for v in judge(seen.folder)] == ["pass"]


def test_what_is_started_again_while_it_waits(tmp_path: Path) -> None:
    fake = both()
    with seeing(fake, tmp_path) as seen:
        before = fake.channels["web"]
        fake.look("web", LISTENS)
        seen.wait(sockets={"web": "LISTEN"})
        fake.lines["web"] = ()  # of its new network
        fake.restarted = ["web"]
        seen.expect(sockets={"web": "none"})
        assert fake.channels["web"] is not before
        fake.restarted = ["web"]
        assert seen.sockets("web") == ()
    assert len(fake.detached) == 2


def test_a_watcher_that_ends_is_an_error(tmp_path: Path) -> None:
    fake = both()
    with pytest.raises(LabError, match="the watcher of web ended"):
        with seeing(fake, tmp_path) as seen:
            fake.channels["web"].close()
            seen.wait(sockets={"web": "LISTEN"})
    assert result(seen.folder)["result"] == "error"


def test_what_a_watch_can_not_do(tmp_path: Path) -> None:
    with seeing(both(), tmp_path) as seen:
        for step, message in (
            ({"kill": "web"}, "kill: a watch only looks; allowed: snapshot, wait, expect, sleep"),
            ({"cut": "web"}, "cut: a watch only looks"),
            ({"expect": {"process": {"web": "running"}}}, "a watch knows no processes"),
            ({"expect": {"sockets": {"wep": "none"}}}, "unknown host 'wep'; .*mean 'web'"),
        ):
            with pytest.raises(UsageError, match=rf"^{HERE}:\d+: .*{message}"):
                seen.do(step)
        assert seen.events(labctl.StepEvent) == ()
        with pytest.raises(UsageError, match="unknown host 'wep'"):
            seen.sockets("wep")
    with pytest.raises(UsageError, match="the watch is not up"):
        seen.note("too late")
    with pytest.raises(UsageError, match="a watch is brought up once"):
        seen.__enter__()


class Stopped:
    """As a container of testcontainers that was not started."""

    def get_wrapped_container(self) -> Any:
        raise RuntimeError("Container is not started")


@pytest.mark.parametrize(
    ("containers", "named", "message"),
    [
        ((), {}, "a watch takes containers"),
        ((7,), {}, r"a name, an id, or a container .* is wanted, not 7 \(int\)"),
        ((Stopped(),), {}, "Container is not started; start it first"),
        ((), {"my_db": "x"}, "'my_db' can't be a host; .*; hosts={\"my-db\": ...}"),
        ((), {"hosts": {7: "x"}}, "hosts: each name: a text is wanted"),
        ((), {"hosts": "x"}, "hosts: a mapping of containers"),
        ((), {"hosts": {"db": "x"}, "db": "y"}, "two hosts are called db"),
        (("x",), {"ports": 80}, "ports: numbers; a host of this name stands in hosts="),
        (("x",), {"ports": ["80"]}, "ports: each: numbers"),
        (("x",), {"ports": [0]}, "ports: 0 is not from 1 to 65535"),
        (("x",), {"out": Stopped()}, "out: a path; a host of this name stands in hosts="),
    ],
)
def test_mistakes(containers: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^{HERE}:\d+: .*{message}"):
        labctl.watch(*containers, **named)


def test_without_an_engine_it_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(SkipTest, match="no Docker engine answers"):
        labctl.watch("db", out=tmp_path).__enter__()
    assert not [*tmp_path.iterdir()]


# --- A wait strategy of testcontainers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "port", "message"),
    [
        ("LISTNE", None, "'LISTNE' is no TCP state"),
        ("LISTEN", 70000, "has no port that there is"),
        ("LISTEN", "5432", "port: a number is wanted"),
        (7, None, "state: a TCP state is wanted"),
    ],
)
def test_mistakes_in_a_socket_state(state: Any, port: Any, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^{HERE}:\d+: .*{message}"):
        labctl.socket_state(state, port)


def test_without_testcontainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "testcontainers.core.waiting_utils", None)
    with pytest.raises(UsageError, match=r"not installed; pip install 'testcontainers>=4\.13,<5'"):
        labctl.socket_state("LISTEN")
