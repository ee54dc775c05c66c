"""The JSON Schema of a line of history.jsonl: an event, made from the types of events."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from labctl.record.events import KINDS, Event


def schema() -> dict[str, Any]:
    """The schema: the keys of each kind, and no others."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "labctl history",
        "description": "A line of history.jsonl: something that happened.",
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in KINDS],
        "$defs": {name: _event(kind) for name, kind in KINDS.items()},
    }


def _event(kind: type[Event]) -> dict[str, Any]:
    found = TypeAdapter(kind).json_schema()
    found["properties"] = {"kind": {"const": kind.kind}, **found["properties"]}
    return {**found, "required": ["kind", *found["required"]]}
