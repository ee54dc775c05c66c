"""The JSON Schema of the scenario language, for editors.

It refuses nothing that the loader accepts. It can't check what needs the whole file: names that
nobody defines, labels, arguments of calls.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic.json_schema import models_json_schema

from labctl.language.document import HEAD
from labctl.language.json_shapes import LATER, SHAPES, either, ref
from labctl.language.models import Written
from labctl.language.predicates import ProcessPattern, SocketPattern
from labctl.language.steps import STEPS
from labctl.language.steps.injecting import StampsPattern
from labctl.language.values import SHAPE, Model

FILLED_LATER = "FilledLater"
REFERENCES = re.compile(r'"#/\$defs/(\w+)"')
DECIDES = {"if", "then", "not"}
"""What models say about several keys at once: it applies only to values that are known."""


def schema() -> dict[str, Any]:
    """The schema, in which `${name}` may stand for every value, and in every key, but for those
    that say what names stand for."""
    models: list[type[Model]] = [
        Written, SocketPattern, ProcessPattern, StampsPattern, *STEPS.values()
    ]  # fmt: skip
    places, found = models_json_schema([(model, "validation") for model in models])
    definitions = {name: _opened(model) for name, model in found["$defs"].items()}
    written = definitions.pop("Written")
    del definitions["Step"]
    # A step is checked against its own verb's schema alone, so messages are about that verb.
    later = {"not": {"propertyNames": {"not": LATER}}}
    step = {
        "type": "object",
        "properties": dict.fromkeys(STEPS, True),
        "anyOf": [*({"required": [verb]} for verb in STEPS), later],
        "allOf": [
            {"if": {"required": [verb]}, "then": places[model, "validation"]}
            for verb, model in STEPS.items()
        ],
    }
    written["properties"]["steps"]["anyOf"][0]["items"] = _value(step)
    for name in HEAD:  # which is as it is written
        written["properties"][name] = written["properties"][name]["anyOf"][0]
    variants = written["properties"]["variants"]
    variants["items"] = variants["items"]["anyOf"][0]
    shapes = {
        name: shape if name in ("Calls", "ProgramCalls") else either(shape, ref(FILLED_LATER))
        for name, shape in SHAPES.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **written,
        "title": "labctl scenario",
        "$defs": _used(written, {FILLED_LATER: LATER, **definitions, **shapes}),
    }


def _used(root: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions that something below `root` refers to: pydantic has more."""
    found: dict[str, Any] = {}
    new = [root]
    while new:
        names = {name for part in new for name in REFERENCES.findall(json.dumps(part))} - {*found}
        new = [definitions[name] for name in sorted(names)]
        found |= dict(zip(sorted(names), new, strict=True))
    return dict(sorted(found.items()))


def _opened(schema: Any) -> Any:
    """pydantic's schema, adapted to a file: nothing is null, and every value and key may be filled
    in later."""
    if isinstance(schema, list):
        return [_opened(item) for item in schema if item != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    if SHAPE in schema:
        return ref(schema[SHAPE])
    opened = {
        key: value if key in DECIDES else _opened(value)
        for key, value in schema.items()
        if (key, value) != ("default", None)
    }
    if isinstance(opened.get("anyOf"), list) and len(opened["anyOf"]) == 1:
        opened |= opened.pop("anyOf")[0]
    for key in ("items", "additionalProperties"):
        if isinstance(opened.get(key), dict):
            opened[key] = _value(opened[key])
    if "properties" in schema:
        opened["properties"] = {k: _value(v) for k, v in opened["properties"].items()}
        if schema.get("additionalProperties") is False:
            opened["patternProperties"] = {LATER["pattern"]: True}
    return opened


def _value(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value that may be filled in later; the SHAPES say so themselves."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return schema if name in SHAPES else either(schema, ref(FILLED_LATER))
