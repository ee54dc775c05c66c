"""Nobody reads a sentence: data first, words last.

What labctl says (verdicts, reasons, errors, steps, rows) is put into words at the very end, and no
judge, report or runner takes it apart again. What they need stands beside the words, as data:
`subject`, `wanted` and `measured` of a verdict, `verb` and `expected` of a step, `hint` of an
error. So words can be mended without breaking anything.

Allowed is to read what others wrote: programs (`output`), `ss`, Debian's tools. And to show words
as they are: whole, wrapped, escaped, cut to a width, compared for equality.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LABCTL = Path(__file__).parents[2] / "labctl"
ROOMS = ("judge", "reports", "run")
SENTENCES = {
    *("what", "expected", "actual", "evidence", "text", "detail", "reason", "why", "told"),
    *("condition", "cause", "last_failed_call", "sentence", "summary", "label", "numbers", "claim"),
    *("cells", "claimed", "words", "title"),
}
"""Attributes that hold words of ours, or may."""
PARSING = {
    *("partition", "rpartition", "split", "rsplit", "splitlines", "startswith", "endswith"),
    *("removeprefix", "removesuffix", "find", "rfind", "index", "rindex", "count"),
}
"""Methods of a text that take it apart or look into it."""
MATCHING = {"match", "search", "fullmatch", "findall", "finditer", "split", "sub"}
"""The same of a regular expression."""
ALLOWED = {
    "judge/ends.py": {"case.scenario.text": "a scenario, as its author wrote it"},
    "judge/causes/listeners.py": {"look.text": "what ss printed"},
    "judge/causes/states.py": {"look.text": "what ss printed"},
    "reports/ladder.py": {
        "event.text": "what ss printed, or a program; its blanks are folded",
        "line": "a line of what ss printed",
    },
    "run/runner.py": {"str(cause).strip()": "an exception of anybody's, cut to its first line"},
    "run/doctor.py": {"str(exc)": "an error without a hint of its own"},
}
"""Texts of others that have the names of ours, by module and expression, and whose they are."""


def _sentence(node: ast.expr, tainted: set[str]) -> bool:
    """Whether an expression holds words of ours: an attribute that does, something made of it, or
    an exception in words."""
    match node:
        case ast.Attribute(attr=attr):
            return attr in SENTENCES
        case ast.Name(id=name):
            return name in tainted
        case ast.Call(func=ast.Name(id="str" | "plain" | "_safe"), args=[of]):
            return _sentence(of, tainted) or (isinstance(of, ast.Name) and of.id == "exc")
        case ast.Call(func=ast.Name(id=name)) if name.endswith("_words"):
            return True
        case ast.Call(func=ast.Attribute(value=of)):
            return _sentence(of, tainted)
        case ast.BoolOp(values=values):
            return any(_sentence(value, tainted) for value in values)
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key in SENTENCES
        case ast.Subscript(value=of):
            return _sentence(of, tainted)
        case ast.JoinedStr(values=values):
            return any(
                _sentence(value.value, tainted)
                for value in values
                if isinstance(value, ast.FormattedValue)
            )
    return False


def _tainted(function: ast.AST) -> set[str]:
    """The names in a function that are given words of ours."""
    found = {
        node.arg
        for node in ast.walk(function)
        if isinstance(node, ast.arg) and node.arg in SENTENCES - {"text", "words"}
    }
    for _ in range(3):  # what is made of what is made of them
        for node in ast.walk(function):
            pairs: list[tuple[ast.expr, ast.expr]] = []
            match node:
                case ast.Assign(targets=[target], value=value):
                    pairs = [(target, value)]
                case ast.NamedExpr(target=target, value=value):
                    pairs = [(target, value)]
                case ast.For(target=target, iter=value):
                    pairs = [(target, value)]
                case ast.comprehension(target=target, iter=value):
                    pairs = [(target, value)]
            for target, value in pairs:
                if isinstance(target, ast.Name) and _sentence(value, found):
                    found.add(target.id)
    return found


def _parsed(function: ast.AST, tainted: set[str]) -> Iterator[ast.expr]:
    """The words of ours that a function takes apart or looks into."""
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(value=of, attr=attr), args=args):
                if attr in PARSING and _sentence(of, tainted):
                    yield of
                if attr in MATCHING:
                    yield from (arg for arg in args if _sentence(arg, tainted))
            case ast.Subscript(value=of, slice=ast.Slice(lower=lower)) if lower is not None:
                if isinstance(of, ast.Attribute) and _sentence(of, tainted):
                    yield of
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[of]):
                if _sentence(of, tainted):
                    yield of


def parsed(source: str) -> list[str]:
    """The expressions with words of ours that a module parses."""
    tree = ast.parse(source)
    functions: list[ast.AST] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return [ast.unparse(of) for f in functions or [tree] for of in _parsed(f, _tainted(f))]


@pytest.mark.parametrize(
    "code",
    [
        'subject = verdict.what.partition(":")[0]',
        'if event.text.startswith(("wait ", "expect ")): pass',
        'caption = step.text.removeprefix("snapshot ")',
        'if event.text[9:] == "x": pass',
        'expected, _, actual = (event.detail or "").partition("; saw ")',
        "found = WAITED.search(verdict.actual)",
        'told = [COUNTED.fullmatch(s) for s in run["why"]]',
        "for line in verdict.evidence: found = ENDPOINT.findall(MAPPED.sub(line))",
        'reset = "RST" in arrow.label.split()',
        "words = arrow_words(ladder, arrow).partition(' [')[0]",
        "if verdict.expected in verdict.what: pass",
        "def halted(about, actual): return actual.startswith(NEVER)",
        'found, _, mend = str(exc).partition("; ")',
        'results = {cell.partition(":")[0] for row in rows for cell in row.cells}',
    ],
)
def test_what_is_noticed(code: str) -> None:
    assert parsed(code)


@pytest.mark.parametrize(
    "code",
    [
        "line = verdict.source.rpartition(':')[2]",
        "if old.text == new.text: pass",
        "shown = plain(verdict.actual)",
        "lines = [f'{v.what}: {v.actual}' for v in verdicts]",
        "values = [line.partition(':') for line in event.output.splitlines()]",
    ],
)
def test_what_is_no_parsing(code: str) -> None:
    assert not parsed(code)


def test_no_template_takes_a_text_apart() -> None:
    """But where something stands: `file:line` is no sentence."""
    for path in (LABCTL / "reports").glob("*.j2"):
        text = path.read_text("utf-8").replace('verdict.source.rpartition(":")', "")
        assert not [word for word in PARSING if f".{word}(" in text], path.name


MODULES = sorted(path for room in ROOMS for path in (LABCTL / room).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LABCTL).as_posix())
def test_nobody_reads_a_sentence(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(LABCTL).as_posix(), {})
    assert [words for words in parsed(path.read_text("utf-8")) if words not in allowed] == []
