"""The JSON Schema of the result document, made from the types that read it.

The document may grow: keys that the schema does not have are allowed."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from labctl.judge.recorded import Document


def schema() -> dict[str, Any]:
    """The schema of what `labctl run --format json` prints, and of each result.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter(Document).json_schema(),
        "title": "labctl result",
    }
