"""YAML with line numbers: from a file to plain data, a map of lines, and mistakes.

`Document.expand` replaces `${name}` everywhere, so it works once for each variant. A key is a word
as it is written, whatever YAML takes it for (`null`, `7`). Of YAML 1.1's truth values only `true`
and `false` count: `on`, `off`, `yes` and `no` are words, as in YAML 1.2. A param is a node of the
file: what it stands for depends on its place (see `_Expansion`).

Guards: files of more than MAX_BYTES, nesting beyond MAX_DEPTH, aliases that multiply beyond
MAX_NODES and params that multiply beyond MAX_BYTES are mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from labctl.ground.data import dataclass
from labctl.ground.errors import Mistake, ScenarioError, UsageError
from labctl.ground.reading import open_file
from labctl.ground.written import Float, Int

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_NODES = 50_000
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
MAX_NUMBER = 2**63

Path_ = tuple[str | int, ...]
Params = Mapping[str, Node]
HEAD = frozenset({"params", "variants"})
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PARAM_NAME = "[A-Za-z_][A-Za-z0-9_]*"
REFERENCE = re.compile(rf"\$\{{({PARAM_NAME})\}}")
CORE = "tag:yaml.org,2002:"
TYPED = {CORE + name for name in ("int", "float", "bool", "null")}
AS_TEXT = {CORE + name for name in ("str", "timestamp", "merge", "value")}
COLLECTIONS = {CORE + name for name in ("map", "seq")}


@dataclass
class Expanded:
    """Plain data, and where its parts stand: `lines` by path, of keys and of values; `blocks` has
    the first and the last line of each literal block's content. `nodes` are the values as the file
    has them, and `unfilled` the lines whose params have no value."""

    data: Any
    lines: dict[Path_, int] = field(default_factory=dict)
    nodes: dict[Path_, Node] = field(default_factory=dict)
    unfilled: set[int] = field(default_factory=set)
    blocks: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    mistakes: list[tuple[int, str]] = field(default_factory=list)

    def line(self, path: Path_) -> int:
        """The line of a path, or of the nearest thing around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def line_in(self, path: Path_, offset: int) -> int:
        """The line in the file of a text's line number `offset`, from 0 on. Only in a literal block
        has each a line of its own."""
        first, last = self.blocks.get(path, (self.line(path),) * 2)
        return min(first + offset, last)


class Document:
    """A YAML file with a mapping at its top. Raises ScenarioError for anything else."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self._lines = text.rstrip().splitlines() or [""]
        self._root = self._compose(text)

    @classmethod
    def read(cls, path: Path) -> Document:
        """Reads a file. Raises UsageError if it can't be read, ScenarioError if it is no UTF-8 or
        no YAML."""
        try:
            with open_file(path) as stream:
                raw = stream.read(MAX_BYTES + 1)
        except OSError as exc:
            raise UsageError(f"{path}: {exc.strerror}") from exc
        if len(raw) > MAX_BYTES:
            raise _mistake(str(path), 1, f"the file is larger than {MAX_BYTES // 1000} kB; a "
                           "scenario is a page or two")  # fmt: skip
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            line = raw.count(b"\n", 0, exc.start) + 1
            message = f"byte {raw[exc.start]:#04x} is not UTF-8; save the file as UTF-8"
            raise _mistake(str(path), line, message) from exc
        return cls(str(path), text)

    def _compose(self, text: str) -> MappingNode:
        try:
            depth = 0
            for event in yaml.parse(text, Loader):
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > MAX_DEPTH:
                    line = _line(event.start_mark, len(self._lines))
                    raise _mistake(self.file, line, TOO_DEEP)
            root = yaml.compose(text, Loader)
        except yaml.MarkedYAMLError as exc:
            line = _line(exc.problem_mark or exc.context_mark, len(self._lines))
            raise _mistake(self.file, line, _yaml_problem(exc, self._lines[line - 1])) from exc
        except yaml.YAMLError as exc:
            before = text.encode()[: getattr(exc, "position", 0)]
            raise _mistake(self.file, before.count(b"\n") + 1,
                           f"no YAML: {getattr(exc, 'reason', exc)}") from exc  # fmt: skip
        except RecursionError as exc:
            raise _mistake(self.file, 1, "nested too deeply") from exc
        if not isinstance(root, MappingNode):
            line = _line(root and root.start_mark, len(self._lines))
            raise _mistake(self.file, line, "a scenario is a mapping with title, hosts and steps")
        return root

    def expand(self, params: Params | None) -> Expanded:
        """Plain data with `${name}` replaced from `params`, and without the HEAD that defines them.
        If `params` is None, everything as it is written."""
        root = self._root if params is None else self._part(lambda key: key not in HEAD)
        return self._expansion(params).run(root)

    def head(self) -> Expanded:
        """The HEAD alone, as it is written."""
        return self._expansion(None).run(self._part(HEAD.__contains__))

    def _part(self, wanted: Callable[[str], bool]) -> MappingNode:
        root = self._root
        kept = [(k, v) for k, v in root.value if wanted(str(k.value))]
        return MappingNode(root.tag, kept, root.start_mark, root.end_mark)

    def values(self, params: Params, names: Iterable[str]) -> Expanded:
        """The values of these params, by name, with the params in them replaced."""
        entries = [(ScalarNode(CORE + "str", name), params[name]) for name in names]
        return self._expansion(params).run(MappingNode(CORE + "map", entries))

    def _expansion(self, params: Params | None) -> _Expansion:
        return _Expansion(self.file, len(self._lines), params)


class _Expansion:
    """From nodes to plain data. If a param is the whole of a value, it stands there as it is, be it
    a mapping; in a text it stands as it was written."""

    def __init__(self, file: str, lines: int, params: Params | None) -> None:
        self.file = file
        self.lines = lines
        self.params = params
        self.filled: dict[str, str] = {}
        self.unfilled: set[str] = set()
        self.filling: dict[str, int] = {}  # params that refer to each other, with their lines
        self.size = 0
        self.nodes = 0
        self.out = Expanded(None)

    def run(self, root: MappingNode) -> Expanded:
        self.out.data = self.value(root, (), frozenset())
        return self.out

    def value(self, node: Node, path: Path_, above: frozenset[int]) -> Any:
        line = _line(node.start_mark, self.lines) if node.start_mark else self.out.line(path)
        self.out.lines.setdefault(path, line)
        self.out.nodes[path] = node
        self.nodes += 1
        if self.nodes > MAX_NODES:
            message = f"aliases or params multiply this file beyond {MAX_NODES} nodes"
            raise _mistake(self.file, line, message)
        if id(node) in above:
            raise _mistake(self.file, line, "an alias stands inside of what it stands for")
        if len(above) > MAX_DEPTH:
            raise _mistake(self.file, line, TOO_DEEP)
        if isinstance(node, ScalarNode):
            return self.scalar(node, path, line, above)
        if node.tag not in COLLECTIONS:
            self.mistake(line, f"the tag {_tag(node)} means nothing here; leave it out")
        below = above | {id(node)}
        if isinstance(node, MappingNode):
            return self.mapping(node, path, below)
        return [self.value(item, (*path, i), below) for i, item in enumerate(node.value)]

    def mapping(self, node: MappingNode, path: Path_, above: frozenset[int]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == CORE + "merge":
                for key, value in self.merged(value_node, path, above).items():
                    result.setdefault(key, value)
        own: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node.start_mark, self.lines)
            if not isinstance(key_node, ScalarNode):
                self.mistake(line, "a key must be a plain word")
                continue
            if key_node.tag == CORE + "merge":
                continue
            key = self.fill(key_node.value, line)
            if key in own:
                self.mistake(line, f"the key {key!r} stands twice, first in line {own[key]}")
            own.setdefault(key, line)
            self.out.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key), above)
        return result

    def merged(self, node: Node, path: Path_, above: frozenset[int]) -> dict[str, Any]:
        """What `<<: node` adds to a mapping (YAML 1.1's merge key). If there are several, the first
        counts."""
        result: dict[str, Any] = {}
        for source in reversed(node.value if isinstance(node, SequenceNode) else [node]):
            if isinstance(source, MappingNode):
                result |= self.value(source, path, above)
            else:
                line = _line(source.start_mark, self.lines)
                self.mistake(line, "<< takes a mapping or a list of mappings")
        return result

    def scalar(self, node: ScalarNode, path: Path_, line: int, above: frozenset[int]) -> Any:
        if node.style == "|":
            line += 1
            self.out.blocks[path] = (line, max(line, node.end_mark.line))
        if self.params is not None and REFERENCE.search(node.value):
            if whole := REFERENCE.fullmatch(node.value):
                return self.param(whole[1], path, line, above)
            return self.fill(node.value, line, node.style == "|")
        if node.tag in AS_TEXT:
            return node.value
        if node.tag not in TYPED:
            self.mistake(line, f"the tag {_tag(node)} means nothing here; leave it out")
            return node.value
        try:
            return construct(node)
        except ValueError as exc:
            self.mistake(line, str(exc))
            return node.value

    def param(self, name: str, path: Path_, line: int, above: frozenset[int]) -> Any:
        """The value of a param, with the params in it filled in; an unknown one stays as it is."""
        node = self.lookup(name, line, above)
        if node is None:
            return f"${{{name}}}"
        self.filling[name] = line
        value = self.value(node, path, above)
        del self.filling[name]
        return value

    def fill(self, text: str, line: int, block: bool = False) -> str:
        """`text` with the params filled in. It begins at `line`; in a block each of its lines is a
        line of the file."""
        if self.params is None or not REFERENCE.search(text):
            return text
        result = REFERENCE.sub(
            lambda m: self.written(m[1], line + block * text.count("\n", 0, m.start())), text
        )
        self.size += len(result)
        if self.size > MAX_BYTES:
            message = f"params multiply this file beyond {MAX_BYTES // 1000} kB"
            raise _mistake(self.file, line, message)
        return result

    def written(self, name: str, line: int) -> str:
        """A param as it stands in a text; one that can't stand there stays as it is."""
        node = self.lookup(name, line)
        if node is None:
            return f"${{{name}}}"
        if not isinstance(node, ScalarNode):
            kind = "mapping" if isinstance(node, MappingNode) else "list"
            message = f"the param ${{{name}}} is a {kind}, and can't stand in a text; "
            self.mistake(line, message + "make it the whole of a value")
            self.out.unfilled |= {line, *self.filling.values()}
            return f"${{{name}}}"
        if name not in self.filled:
            self.filling[name] = line
            mistakes = len(self.out.mistakes)
            own = _line(node.start_mark, self.lines) if node.start_mark else line
            self.filled[name] = self.fill(node.value, own)
            del self.filling[name]
            if len(self.out.mistakes) > mistakes:
                self.unfilled.add(name)
        if name in self.unfilled:
            self.out.unfilled |= {line, *self.filling.values()}
        return self.filled[name]

    def lookup(self, name: str, line: int, above: frozenset[int] = frozenset()) -> Node | None:
        """The node of a param. If there is none, or it would contain itself, that is a mistake."""
        assert self.params is not None
        node = self.params.get(name)
        if node is None:
            from labctl.language.values import choices

            message = f"unknown param ${{{name}}}; {choices(name, self.params)}"
            self.mistake(line, message)
        elif name in self.filling or id(node) in above:
            self.mistake(line, f"the param ${{{name}}} refers to itself")
            node = None
        elif len(self.filling) > MAX_DEPTH:
            raise _mistake(self.file, line, f"params refer to others {MAX_DEPTH} times over")
        if node is None:
            self.out.unfilled |= {line, *self.filling.values()}
        return node

    def mistake(self, line: int, message: str) -> None:
        self.out.mistakes.append((line, message))


def construct(node: ScalarNode) -> Any:
    """The number, truth value or None that a scalar stands for. Raises ValueError."""
    if node.tag == CORE + "bool" and node.value.lower() not in ("true", "false"):
        return node.value
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError):
        value = MAX_NUMBER
    if isinstance(value, int | float) and not abs(value) < MAX_NUMBER:
        raise ValueError(f"{node.value[:40]!r} is no {_tag(node)} that can be used here")
    if isinstance(value, float):
        return Float(value, node.value)
    return Int(value, node.value) if type(value) is int else value


def read_scalar(text: str) -> ScalarNode:
    """A value as YAML reads it, if it is a scalar; everything else is a text."""
    whole = ScalarNode(CORE + "str", text)
    try:
        events = [e for e in yaml.parse(text, Loader) if isinstance(e, yaml.NodeEvent)]
        if len(events) != 1 or not isinstance(events[0], yaml.ScalarEvent):
            return whole
        resolver: Any = yaml.SafeLoader("")
        tag = events[0].tag or resolver.resolve(ScalarNode, events[0].value, events[0].implicit)
        node = ScalarNode(tag if tag in TYPED else CORE + "str", events[0].value)
        if tag in TYPED:
            construct(node)
        return node
    except (yaml.YAMLError, ValueError):
        return whole


def _tag(node: Node) -> str:
    return str(node.tag.removeprefix(CORE))


def _line(mark: Any, lines: int) -> int:
    """The line of a mark, from 1 on. In a file of `lines` lines, its end belongs to the last."""
    return min(mark.line + 1, lines) if mark else 1


def _mistake(file: str, line: int, message: str) -> ScenarioError:
    return ScenarioError([Mistake(file, line, message)])


def _yaml_problem(exc: yaml.MarkedYAMLError, line: str) -> str:
    problem = exc.problem or "no YAML"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "a tab indents this line; YAML allows only spaces"
    if "maximum nesting depth" in problem:  # libyaml's own limit, since 0.2.6, of 1,000 levels
        return TOO_DEEP
    if "another document" in problem:
        return "a second document begins here; a scenario is one document"
    if "mapping values are not allowed" in problem:
        problem += '; put a text with ": " in quotation marks'
    if not exc.context:
        return f"no YAML: {problem}"
    begun = f" that begins in line {exc.context_mark.line + 1}" if exc.context_mark else ""
    return f"no YAML: {problem} ({exc.context}{begun})"
