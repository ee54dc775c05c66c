"""What can be changed in a module, one thing at a time, so that a test should notice.

Nothing is changed in docstrings, annotations, decorators, strings and zip's `strict`: that is for
people and for tools. An order (`<`) moves by its boundary alone, since any test would notice the
reverse.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

SKIPPED = {"annotation", "returns", "decorator_list", "type_comment", "type_params"}
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,  # not the other way: most of those are types
}
AROUND = 40
"""So many characters of what stays are shown on both sides of what changes."""
Function = tuple[str, int]
"""The qualified name and the first line of a function, as its code object has them."""


@dataclass(frozen=True)
class Edit:
    """One change: `holder[key]` becomes `new`. Who executes one of `lines` may notice. `function`
    is the outermost one around it; None where it happens as the module is imported."""

    holder: Any
    key: str | int
    new: ast.AST
    lines: range
    function: Function | None

    def __str__(self) -> str:
        old, new = _text(self.holder[self.key]), _text(self.new)
        begin, end = _common(old, new), _common(old[::-1], new[::-1])
        end = min(end, len(old) - begin, len(new) - begin)
        return f"{_shown(old, begin, end)} -> {_shown(new, begin, end)}"

    def apply(self) -> None:
        """Changes the tree that it was found in, for good."""
        old = self.holder[self.key]
        self.holder[self.key] = ast.fix_missing_locations(ast.copy_location(self.new, old))


@dataclass(frozen=True)
class Source:
    """A module's tree, and all that can be changed in it, in the order of its text."""

    path: Path
    tree: ast.Module
    edits: tuple[Edit, ...]

    @classmethod
    def read(cls, path: Path) -> Source:
        tree = ast.parse(path.read_text("utf-8"))
        return cls(path, tree, tuple(_found(tree, _Around((), None, range(0)))))


@dataclass(frozen=True)
class _Around:
    """What a node stands in: classes, the outermost function, and the lines of its statement."""

    classes: tuple[str, ...]
    function: Function | None
    lines: range


def _found(node: ast.AST, around: _Around) -> Iterator[Edit]:
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue  # of zip(): it asserts what is so
        inner = _inside(node, field, around)
        each = enumerate(value) if isinstance(value, list) else [(field, value)]
        holder = value if isinstance(value, list) else vars(node)
        for key, child in each:
            if not isinstance(child, ast.AST) or _is_text(child):
                continue
            lines = _lines(child, inner.lines)
            new = [*_changes(child), *_conditions(node, field)]
            yield from (Edit(holder, key, each, lines, inner.function) for each in new)
            yield from _found(child, _Around(inner.classes, inner.function, lines))


def _inside(node: ast.AST, field: str, around: _Around) -> _Around:
    """Around what is in the body of a class or a function. Defaults are no part of that."""
    if field != "body" or around.function:
        return around
    if isinstance(node, ast.ClassDef):
        return _Around((*around.classes, node.name), None, around.lines)
    if isinstance(node, ast.FunctionDef):
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        function = ".".join([*around.classes, node.name]), first
        return _Around(around.classes, function, around.lines)
    return around


def _lines(node: ast.AST, around: range) -> range:
    """From the first line of a statement to the last of an expression in it."""
    if isinstance(node, ast.stmt):
        return range(node.lineno, node.lineno + 1)
    if isinstance(node, ast.expr):
        return range(around.start, (node.end_lineno or node.lineno) + 1)
    return around


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _conditions(parent: ast.AST, field: str) -> Iterator[ast.expr]:
    """What a condition becomes: none at all, or one that never holds."""
    if isinstance(parent, ast.If | ast.IfExp) and field == "test":
        yield from (ast.Constant(True), ast.Constant(False))
    elif isinstance(parent, ast.While) and field == "test":
        yield ast.Constant(False)
    elif field in ("ifs", "guard"):
        yield ast.Constant(True)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left, ops, comparators):
            for number, op in enumerate(ops):
                changed = [*ops[:number], COMPARED[type(op)](), *ops[number + 1 :]]
                yield ast.Compare(left, changed, comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for number in range(len(values)):
                kept = [*values[:number], *values[number + 1 :]]
                yield ast.BoolOp(op, kept) if len(kept) > 1 else kept[0]
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BinOp(left, ast.Mod()):
            yield left
        case ast.BinOp(left, op, right) if type(op) in COMPUTED:
            yield ast.BinOp(left, COMPUTED[type(op)](), right)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Return(value) if value and not _is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.AugAssign(target, op, value):
            if type(op) in COMPUTED:
                yield ast.AugAssign(target, COMPUTED[type(op)](), value)
            yield ast.Pass()
        case ast.Assign(targets):  # without a name's, all the rest would break
            if not any(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                yield ast.Pass()
        case ast.Expr() | ast.Delete() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def _common(one: str, other: str) -> int:
    """How many characters they have in common at their beginnings."""
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])


def _shown(text: str, begin: int, end: int) -> str:
    """A text without the most of its first `begin` and its last `end` characters, where it is
    long."""
    first, last = max(0, begin - AROUND), min(len(text), len(text) - end + AROUND)
    return ("..." if first else "") + text[first:last] + ("..." if last < len(text) else "")
