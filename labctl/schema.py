"""The JSON Schema of the scenario language, for editors."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from labctl.scenario import MODIFIERS, Written
from labctl.steps import STEPS
from labctl.values import Model

FILLED_LATER = "FilledLater"
REFERENCE = {"type": "string", "pattern": r"\$\{"}


def schema() -> dict[str, Any]:
    """The schema, in which `${name}` may stand for all that is no mapping of a known shape."""
    models: list[type[Model]] = [Written, *STEPS.values()]
    places, found = models_json_schema([(model, "validation") for model in models])
    definitions = found["$defs"]
    written = definitions.pop("Written")
    del definitions["Step"]
    steps = [places[step, "validation"] for step in STEPS.values()]
    modifiers = {"enum": sorted(MODIFIERS)}
    verb_later = {
        "type": "object",
        "propertyNames": {"anyOf": [modifiers, REFERENCE]},
        "not": {"propertyNames": modifiers},
    }
    written["properties"]["steps"]["items"] = {"anyOf": [*steps, verb_later]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_opened(written),
        "title": "labctl scenario",
        "$defs": {FILLED_LATER: REFERENCE, **_opened(definitions)},
    }


def _opened(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_opened(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {key: _opened(value) for key, value in schema.items()}
    for key in ("items", "additionalProperties"):
        if isinstance(opened.get(key), dict):
            opened[key] = _or_filled_later(opened[key])
    if "properties" in schema:
        values = opened["properties"].items()
        opened["properties"] = {key: _or_filled_later(value) for key, value in values}
    return opened


def _or_filled_later(schema: dict[str, Any]) -> dict[str, Any]:
    text = schema.get("type") == "string" and not {"enum", "pattern"} & {*schema}
    if text or "$ref" in schema:
        return schema
    return {"anyOf": [schema, {"$ref": f"#/$defs/{FILLED_LATER}"}]}
