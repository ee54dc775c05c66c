"""Claims that count from a label that no step has set: what kept it from that is told once."""

from __future__ import annotations

from tests.fake import FakeBackend
from tests.played import ESTAB, LISTEN, Play, outcomes, told

NEVER = "- note: never\n  as: then\n  when: {kernel: '>=99'}\n"
QUEUE = "LISTEN accept queue 0/0"
WHY = "'then' was left out: kernel 6.1.0-fake is not >=99"


def test_what_counts_from_a_step_that_was_left_out_is_left_out_too(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN)})
    found = watch(
        f"{NEVER}- wait: {{sockets: {{server: none}}}}\n  since: then\n"
        "- expect: {segments: {flags: FIN, since: then}}\n"
        "- start: server\n- wait: {sockets: {server: LISTEN}}\n",
        fake,
        "expect:\n- {segments: {flags: RST, since: then}, sockets: {server: LISTEN}}\n",
    )
    assert found.result == "pass"
    assert outcomes(found) == ["skipped", "skipped", "skipped", "done", "held"]
    assert [(v.result, v.actual) for v in found.verdicts] == [
        ("skip", WHY), ("skip", WHY), ("pass", f"{QUEUE} after 0.000 s"),
        ("pass", QUEUE), ("skip", WHY),
    ]  # fmt: skip


def test_a_heal_of_a_drop_that_was_left_out(watch: Play) -> None:
    drop = "- drop: {to: server}\n  as: lossy\n  when: {backend: docker}\n"
    found = watch(f"{drop}- heal: lossy\n- note: done\n")
    assert outcomes(found) == ["skipped", "skipped", "done"]
    assert (found.result, found.reason) == ("skip", "backend fake is not docker")


def test_a_label_that_the_steps_did_not_come_to(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", ESTAB)})
    found = watch(
        "- start: server\n- wait: {sockets: {server: TIME-WAIT}}\n  within: 10ms\n"
        "- kill: server\n  as: killed\n",
        fake,
        "expect:\n- segments: {from: server, flags: FIN, since: killed, count: 0}\n",
    )
    assert told(found) == [
        ("server: TIME-WAIT", "fail"), ("server: 0 x FIN from server since killed", "unknown"),
    ]  # fmt: skip
    why = "'killed' was not reached: the steps ended before, at lesson.yaml:10"
    assert found.verdicts[1].actual == why


def test_a_claim_that_is_false_after_a_label_stays_so(watch: Play) -> None:
    found = watch(
        "- note: now\n  as: then\n- wait: {sockets: {server: LISTEN}}\n  since: then\n"
        "  within: 10ms\n"
    )
    assert told(found) == [("server: LISTEN", "fail")]
