"""What a pattern finds in what a program wrote: whatever the pieces, in bounded time."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labctl.ground import patterns
from labctl.ground.errors import ScenarioError
from labctl.ground.patterns import TooSlow
from labctl.probes.outputs import REACH, SHOWN, Output
from tests.fake import FakeBackend, play, scenario

PATTERNS = [
    "done", "^done", "done$", "^done$", "^$", "", "a+b", "^a+$", "(?s)a.*b", "a\\nb", "a[^x]*b",
    "b\\s+a",
    r"\bdone\b", "(?i)DONE", r"\Adone", r"done\Z", "(?<=a)b", "(?<!a)b", "(?=a)a", "a$\n^b", ".*",
    r"a\Wb",
]  # fmt: skip
text = st.text(st.sampled_from("ab\ndone x\0"), max_size=40)


@given(st.sampled_from(PATTERNS), st.lists(text, max_size=8))
@example("^done$", ["do", "ne", "\n"])
@example("(?s)a.*b", ["a\n", "\n", "b"])
@example("^aé+$", ["a" + "é" * 200_000, "\n"])
def test_pieces_make_no_difference(pattern: str, pieces: list[str]) -> None:
    output = Output()
    for index, piece in enumerate(pieces):
        output.add(piece)
        whole = "".join(pieces[: index + 1])
        expected = re.search(pattern, whole, re.MULTILINE)
        if output.search(pattern) != (expected[0] if expected else None):
            # What was found once, before an end that was none, is found for ever.
            assert output.search(pattern) is not None
            assert any(
                re.search(pattern, "".join(pieces[:n]), re.MULTILINE) for n in range(index + 1)
            )
    whole = "".join(pieces)
    fresh = Output()
    for piece in pieces:
        fresh.add(piece)
    expected = re.search(pattern, whole, re.MULTILINE)
    assert fresh.search(pattern) == (expected[0] if expected else None)
    assert fresh.text == whole


@pytest.mark.parametrize(
    ("before", "after", "pattern", "found"),
    [
        ("x\n", "y\ndone\n", "^done", "done"),
        ("x\n", "done\n", "^done", None),  # the line may have begun before
        ("x\n", "done\n", "done$", "done"),
        ("done", "x\n", "done", "done"),
        ("done", "x\n", "done$", None),  # the line may have gone on
        ("done\n", "x\n", "done$", "done"),
        ("x done", "x\n", r"done\b", None),
        ("aaa", "x\n", "a+", "aaa"),
        ("aaa", "x\n", "^a+$", None),
        ("a", "b\n", "ab", None),
        ("a\n", "b\n", "(?s)a.*b", None),
        ("a", "b\n", "a.", None),
        ("ready: ", "x\n", "ready.*", "ready: "),
    ],
)
def test_nothing_is_found_across_what_was_left_out(
    before: str, after: str, pattern: str, found: str | None
) -> None:
    output = Output()
    output.add(before)
    output.add(after, 100)
    assert output.search(pattern) == found
    assert output.left_out == 100
    assert output.text == before + after


@pytest.mark.parametrize(
    ("pattern", "within"),
    [
        ("done", True), ("^a.*b$", True), (r"\d+\.\d+ \[x\] \\n", True), (r"\(\^", True),
        ("(?i)a", True), (r"a\s", False), (r"\n", False), ("a\nb", False), ("[^a]", False),
        ("(?s).", False), ("(?is:.)", False), (r"[\W]", False), (r"\x0a", False), (r"(.)\1", False),
        ("[\t-z]", False), ("(?P<s>a)", True), (r"[\[^]", True),
    ],
)  # fmt: skip
def test_what_is_surely_in_a_line(pattern: str, within: bool) -> None:
    assert patterns.in_a_line(pattern) == within


def test_a_match_over_lines_reaches_back_so_far() -> None:
    output = Output()
    output.add("begin\n" + "x\n" * (REACH // 2 - 100))
    assert output.search("(?s)begin.*end") is None
    output.add("end\n")
    assert output.search("(?s)begin.*end") is not None
    output = Output()
    output.add("begin\n" + "x\n" * (REACH // 2))
    assert output.search("(?s)begin.*end") is None
    output.add("end\n")
    assert output.search("(?s)begin.*end") is None


@pytest.mark.parametrize(("length", "found"), [(262_144, True), (262_145, False)])
def test_how_far_back_it_reaches(length: int, found: bool) -> None:
    output = Output()
    output.add("begin".ljust(length, "\n"))
    assert output.search("(?s)begin.*end") is None
    output.add("end\n")
    assert (output.search("(?s)begin.*end") is not None) is found


def test_a_match_within_a_line_may_have_any_length() -> None:
    output = Output()
    output.add("x\nbegin" + "." * (REACH + 10))
    assert output.search("begin.*end") is None
    output.add("end\n")
    found = output.search("begin.*end")
    assert found and len(found) == len("begin") + REACH + 10 + len("end")
    assert Output().search("begin") is None


def test_the_last_lines() -> None:
    output = Output()
    assert output.last_lines(3) == []
    output.add("a\nb\n")
    output.add("c\nd\n\n")
    assert output.last_lines(3) == ["b", "c", "d"]
    assert output.last_lines(1) == ["d"]
    output.add("x" * (SHOWN + 100))
    assert output.last_lines(3) == ["x" * SHOWN]
    output.add("e\n", 7)
    output.add("f\n", 5)
    assert output.last_lines(3) == ["f"]  # what was before is not known
    assert output.left_out == 12


BACKTRACKS = "(a|aa)+$"


def test_a_pattern_that_backtracks_gives_up_once() -> None:
    output = Output()
    output.add("a" * 100 + "!\n")
    with pytest.raises(TooSlow, match="does not decide"):
        output.search(BACKTRACKS)
    began = time.process_time()
    output.add("more\n")
    with pytest.raises(TooSlow):
        output.search(BACKTRACKS)
    assert time.process_time() - began < patterns.PATIENCE / 2
    assert output.search("more") == "more"


LESSON = """\
title: Output
hosts: {{server: {{run: x}}, client: {{}}}}
steps:
  - start: server
  - wait: {{process: {{server: {{output: '{pattern}'}}}}}}
    within: 100ms
  - exec: {{server: ls}}
    output: '{pattern}'
"""


@pytest.mark.slow
def test_a_claim_that_backtracks_is_unknown(tmp_path: Path) -> None:
    fake = FakeBackend(
        {"start server": lambda lab: lab.output("server", "a" * 100 + "!\n")},
        {"exec server ls": {"exit": 0, "output": "a" * 100 + "!\n"}},
    )
    result = play(LESSON.format(pattern=BACKTRACKS), fake, tmp_path)
    assert result.result == "unknown"
    (verdict,) = result.verdicts
    assert "the pattern does not decide in 2 s" in verdict.actual
    steps = LESSON.format(pattern=BACKTRACKS).partition("  - wait")[0]
    execs = LESSON.format(pattern=BACKTRACKS).partition("100ms\n")[2]
    result = play(steps + execs, fake, tmp_path)
    assert result.result == "unknown"
    assert "the pattern does not decide in 2 s" in result.verdicts[0].actual


def test_a_claim_on_what_was_not_recorded_is_unknown(tmp_path: Path) -> None:
    def act(lab: FakeBackend) -> None:
        lab.output("server", "begin\n")
        lab.say("server", kind="output", text="\nend\n", left_out=1000)

    for pattern, expected in (("^end", "pass"), ("begin$", "pass"), ("middle", "unknown")):
        text = LESSON.format(pattern=pattern).partition("  - exec")[0]
        result = play(text, FakeBackend({"start server": act}), tmp_path)
        assert result.result == expected
        assert ("1000 bytes of it are not recorded" in result.verdicts[0].actual) == (
            expected == "unknown"
        )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(" * 500 + "a" + ")" * 500, "it is nested too deep"),
        ("(" * 9000, "nested too deep"),
        ("a{9999999999}", "its counts, multiplied, are beyond 100000"),
        ("((a{1000}){1000}){1000}", "its counts, multiplied"),
        ("(a{1,60000}){60000}", "its counts, multiplied"),
        ("a{1000000}", "its counts, multiplied"),
        ("a" * 10_001, "it has 10001 characters; 10000 are the most"),
        ("(", "missing ), unterminated subpattern"),
        ("[z-a]", "bad character range"),
        ("*", "nothing to repeat"),
        ("(?<=a+)b", "look-behind requires fixed-width pattern"),
        (r"\p{L}", "bad escape"),
        ("(?P<a>x)(?P<a>y)", "redefinition of group name"),
    ],
)
def test_patterns_that_are_mistakes(pattern: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(LESSON.format(pattern=pattern))
    (first, *_) = caught.value.mistakes
    assert str(first).startswith("lesson.yaml:5: ")
    assert "is no regular expression" in first.message
    assert message in first.message


@pytest.mark.parametrize(
    "pattern",
    ["(" * 60 + "a" + ")" * 60, r"\d{1,3}(\.\d{1,3}){3}", "a{64}", "[[a]", r"\{100000000x\}"],
)
def test_patterns_that_are_fine(pattern: str) -> None:
    scenario(LESSON.format(pattern=pattern))
