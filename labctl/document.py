"""YAML with line numbers: from a file to plain data, a map of lines, and mistakes.

`Document.expand` replaces `${name}` everywhere, and so works once per variant. Guards: files of
more than MAX_BYTES, nesting beyond MAX_DEPTH and aliases that multiply beyond MAX_NODES
are mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from labctl.errors import Mistake, ScenarioError, UsageError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_NODES = 50_000

Path_ = tuple[str | int, ...]
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass
class Expanded:
    """Plain data, and where its parts stand: `lines` by path, of keys and of values alike; `text`
    holds the line where the first line of each block scalar's content stands."""

    data: Any
    lines: dict[Path_, int] = field(default_factory=dict)
    text: dict[Path_, int] = field(default_factory=dict)
    mistakes: list[tuple[int, str]] = field(default_factory=list)

    def line(self, path: Path_) -> int:
        """The line of a path, or of the nearest thing around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)


class Document:
    """A YAML file with a mapping at its top. Raises ScenarioError for anything else."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self._root = self._compose(text)

    @classmethod
    def read(cls, path: Path) -> Document:
        """Reads a file. Raises UsageError where it can't be read, ScenarioError where it is no
        UTF-8 or no YAML."""
        try:
            with path.open("rb") as stream:
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
                    raise _mistake(self.file, getattr(event.start_mark, "line", 0) + 1,
                                   f"nested deeper than {MAX_DEPTH} levels")  # fmt: skip
            root = yaml.compose(text, Loader)
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            raise _mistake(self.file, mark.line + 1 if mark else 1, _yaml_problem(exc)) from exc
        except yaml.YAMLError as exc:
            position = getattr(exc, "position", 0)
            raise _mistake(self.file, text.count("\n", 0, position) + 1,
                           f"no YAML: {getattr(exc, 'reason', exc)}") from exc  # fmt: skip
        except RecursionError as exc:
            raise _mistake(self.file, 1, "nested too deeply") from exc
        if not isinstance(root, MappingNode):
            line = root.start_mark.line + 1 if root else 1
            raise _mistake(self.file, line, "a scenario is a mapping with title, hosts and steps")
        return root

    def expand(
        self, params: Mapping[str, Any] | None, only: frozenset[str] | None = None
    ) -> Expanded:
        """Plain data with `${name}` replaced from `params` (left alone where that is None);
        `only` keeps the named top-level keys alone."""
        return _Expansion(params).run(self._root, only)


class _Expansion:
    def __init__(self, params: Mapping[str, Any] | None) -> None:
        self.params = params
        self.constructor = yaml.SafeLoader("")
        self.out = Expanded(None)
        self.nodes = 0

    def run(self, root: MappingNode, only: frozenset[str] | None) -> Expanded:
        if only is not None:
            kept = [(k, v) for k, v in root.value if k.value in only]
            root = MappingNode(root.tag, kept, root.start_mark, root.end_mark)
        self.out.data = self.value(root, (), frozenset())
        return self.out

    def value(self, node: Node, path: Path_, above: frozenset[int]) -> Any:
        line = node.start_mark.line + 1
        self.out.lines.setdefault(path, line)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            if self.nodes == MAX_NODES + 1:
                self.mistake(line, f"aliases multiply this file beyond {MAX_NODES} nodes")
            return None
        if id(node) in above:
            self.mistake(line, "an alias contains itself")
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        below = above | {id(node)}
        if not isinstance(node, MappingNode):
            return [self.value(item, (*path, i), below) for i, item in enumerate(node.value)]
        return self.mapping(node, path, below)

    def mapping(self, node: MappingNode, path: Path_, above: frozenset[int]) -> dict[Any, Any]:
        try:
            self.constructor.flatten_mapping(node)
        except (yaml.YAMLError, RecursionError):
            self.mistake(node.start_mark.line + 1, "<< takes a mapping or a list of mappings")
            return {}
        result: dict[Any, Any] = {}
        own: dict[Any, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.value(key_node, (*path, "?"), above)
            self.out.lines.pop((*path, "?"), None)
            if isinstance(key, (dict, list)):
                self.mistake(line, "a key must be a plain word")
                continue
            if key in own and own[key] != line:
                self.mistake(line, f"the key {key!r} stands twice, first in line {own[key]}")
            own[key] = line
            self.out.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key), above)
        return result

    def scalar(self, node: ScalarNode, path: Path_) -> Any:
        self.out.text[path] = node.start_mark.line + (2 if node.style in ("|", ">") else 1)
        text = node.value
        whole = REFERENCE.fullmatch(text)
        if self.params is not None and whole:
            return self.param(whole, node)
        if self.params is not None and REFERENCE.search(text):
            return REFERENCE.sub(lambda match: str(self.param(match, node)), text)
        try:
            value = self.constructor.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self.mistake(node.start_mark.line + 1, f"{text!r} is no valid {node.tag} value")
            return None
        # YAML reads 2026-01-01 as a date; nothing in a scenario is one.
        return value if isinstance(value, str | int | float | bool | None) else text

    def param(self, match: re.Match[str], node: ScalarNode) -> Any:
        assert self.params is not None
        name = match.group(1)
        if name not in self.params:
            known = ", ".join(self.params) or "none are defined"
            self.mistake(node.start_mark.line + 1, f"unknown param ${{{name}}}; allowed: {known}")
            return None
        return self.params[name]

    def mistake(self, line: int, message: str) -> None:
        self.out.mistakes.append((line, message))


def _mistake(file: str, line: int, message: str) -> ScenarioError:
    return ScenarioError([Mistake(file, line, message)])


def _yaml_problem(exc: yaml.MarkedYAMLError) -> str:
    problem = exc.problem or "no YAML"
    if "cannot start any token" in problem and ("'\\t'" in problem or "tab" in problem):
        return "a tab indents this line; YAML allows only spaces"
    return f"no YAML: {problem}" + (f" ({exc.context})" if exc.context else "")
