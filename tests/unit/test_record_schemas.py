"""The schemas of what is recorded, on what is recorded indeed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.judge import recorded
from labctl.judge.result import document
from labctl.judge.schema import schema as result_schema
from labctl.record.events import KINDS, VERSION
from labctl.record.schema import schema as history_schema
from tests.fake import FakeBackend, play
from tests.reported import RUN, full

jsonschema = pytest.importorskip("jsonschema")
HISTORY = jsonschema.Draft202012Validator(history_schema())
RESULT = jsonschema.Draft202012Validator(result_schema())
GOLDEN = Path(__file__).parents[1] / "golden" / "document.json"

LESSON = """\
title: One that is recorded
hosts: {server: {calls: "socket; bind :80"}, client: {}}
steps:
  - start: server
  - exec: {client: "true"}
  - expect: {process: {server: running}}
  - expect: {sockets: {server: LISTEN}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run as it is recorded today, that fails."""
    backend = FakeBackend({"start server": lambda lab: lab.call("server", "socket")})
    return play(LESSON, backend, tmp_path).folder


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def every_field() -> Iterator[dict[str, Any]]:
    yield from (json.loads(event.to_json()) for event in full().events)


def test_they_are_schemas() -> None:
    for validator in (HISTORY, RESULT):
        validator.check_schema(validator.schema)
    assert {*history_schema()["$defs"]} == {*KINDS}


def test_histories_fit(folder: Path) -> None:
    found = [*lines(folder / "history.jsonl"), *lines(RUN / "history.jsonl"), *every_field()]
    for event in found:
        HISTORY.validate(event)
    assert found[0]["version"] == VERSION
    assert len({event["kind"] for event in found}) > 8


def test_results_fit(folder: Path) -> None:
    """And nothing is written that they do not tell of."""
    made = json.loads(json.dumps(document([recorded.load(folder), recorded.load(RUN)])))
    written = json.loads((folder / "result.json").read_text())
    for found in (made, written, json.loads(GOLDEN.read_text())):
        RESULT.validate(found)
        assert {*found} <= {*result_schema()["properties"]}
        for run in found["runs"]:
            assert {*run} <= {*result_schema()["$defs"]["Run"]["properties"]}
            for verdict in run["verdicts"]:
                assert {*verdict} <= {*result_schema()["$defs"]["Verdict"]["properties"]}
    assert written["runs"][0]["result"] == "fail"
    RESULT.validate(json.loads((RUN / "result.json").read_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"t": "soon"},
        {"kind": "nothing"},
        {"more": 1},
        {"host": 3},
        {"new": "SLEEPING"},
        {"old": None},
    ],
)
def test_what_is_no_event(change: dict[str, object]) -> None:
    event = {"t": 1, "kind": "state", "host": "a", "local": "a:1", "remote": "b:2", "old": "LISTEN",
             "new": "ESTAB"}  # fmt: skip
    HISTORY.validate(event)
    with pytest.raises(jsonschema.ValidationError):
        HISTORY.validate({**event, **change})


@pytest.mark.parametrize(
    "change", [{"runs": [{}]}, {"runs": [{"result": "great"}]}, {"version": 1}, {"version": "one"}]
)
def test_what_is_no_result(change: dict[str, object]) -> None:
    found = {"version": "1", "result": "pass", "runs": [{"result": "pass"}]}
    RESULT.validate(found)
    with pytest.raises(jsonschema.ValidationError):
        RESULT.validate({**found, **change})
